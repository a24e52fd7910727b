"""Faster diffusers pipelines without training: agent attention, key/value sampling and skipped steps, reversible."""

from typing import TYPE_CHECKING, Any

from agentsd.attention.settings import MergedTokens as MergedTokens
from agentsd.attention.settings import PooledAgents as PooledAgents
from agentsd.attention.settings import SampledKeys as SampledKeys
from agentsd.patch import Patch as Patch
from agentsd.patch import apply as apply
from agentsd.patch import remove as remove
from agentsd.patch import report as report
from agentsd.planning.plans import Plan as Plan
from agentsd.presets import PRESETS as PRESETS
from agentsd.presets import preset as preset
from agentsd.schedule import ListedSteps as ListedSteps
from agentsd.schedule import Phase as Phase
from agentsd.schedule import Schedule as Schedule
from agentsd.schedule import Skipping as Skipping

__version__ = "0.1.0"

if TYPE_CHECKING:
    from agentsd.calibration.calibrate import calibrate as calibrate
    from agentsd.calibration.result import Calibration as Calibration
    from agentsd.planning.measuring import plan as plan


def __getattr__(name: str) -> Any:
    """Import measuring only when it is asked for: whoever neither plans nor calibrates need not load it."""
    if name == "plan":
        from agentsd.planning.measuring import plan

        return plan
    if name == "calibrate":
        from agentsd.calibration.calibrate import calibrate

        return calibrate
    if name == "Calibration":
        from agentsd.calibration.result import Calibration

        return Calibration
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "Calibration", "calibrate", "plan"})
