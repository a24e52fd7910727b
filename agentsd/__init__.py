"""Agent attention for diffusers pipelines: training-free, per step, exactly reversible."""

from typing import TYPE_CHECKING, Any

from agentsd.patch import Patch as Patch
from agentsd.patch import apply as apply
from agentsd.patch import remove as remove
from agentsd.patch import report as report
from agentsd.pipeline import AgentPipeline as AgentPipeline
from agentsd.planning.plans import Plan as Plan
from agentsd.presets import DEFAULT_PRESET as DEFAULT_PRESET
from agentsd.presets import FRONT as FRONT
from agentsd.presets import PRESETS as PRESETS
from agentsd.presets import preset_schedule as preset_schedule
from agentsd.schedule import AgentConfig as AgentConfig
from agentsd.schedule import Phase as Phase
from agentsd.schedule import Schedule as Schedule

__version__ = "0.1.0"

if TYPE_CHECKING:
    from agentsd.planning.measuring import plan as plan


def __getattr__(name: str) -> Any:
    """Import measuring only when it is asked for: whoever does not plan need not load it."""
    if name == "plan":
        from agentsd.planning.measuring import plan

        return plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "plan"})
