"""What happens at which step, as plain data with JSON both ways: phases, skipped steps and schedules."""

from agentsd.schedule.listed import ListedSteps as ListedSteps
from agentsd.schedule.phases import Phase as Phase
from agentsd.schedule.phases import Skipping as Skipping
from agentsd.schedule.schedule import Schedule as Schedule
