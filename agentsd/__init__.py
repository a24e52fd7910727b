"""Faster diffusers pipelines without training: agent attention, key/value sampling and skipped steps, reversible."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from agentsd.attention.settings import MergedTokens as MergedTokens
    from agentsd.attention.settings import PooledAgents as PooledAgents
    from agentsd.attention.settings import SampledKeys as SampledKeys
    from agentsd.calibration.calibrate import calibrate as calibrate
    from agentsd.calibration.result import Calibration as Calibration
    from agentsd.patch import Patch as Patch
    from agentsd.patch import apply as apply
    from agentsd.patch import remove as remove
    from agentsd.patch import report as report
    from agentsd.planning.measuring import plan as plan
    from agentsd.planning.plans import Plan as Plan
    from agentsd.presets import PRESETS as PRESETS
    from agentsd.presets import preset as preset
    from agentsd.schedule import ListedSteps as ListedSteps
    from agentsd.schedule import Phase as Phase
    from agentsd.schedule import Schedule as Schedule
    from agentsd.schedule import Skipping as Skipping

# Each public name and its module. A name is imported when it is first used: `agentsd --help` needs no torch.
_PLACES = {
    "MergedTokens": "attention.settings",
    "PooledAgents": "attention.settings",
    "SampledKeys": "attention.settings",
    "Patch": "patch",
    "apply": "patch",
    "remove": "patch",
    "report": "patch",
    "calibrate": "calibration.calibrate",
    "Calibration": "calibration.result",
    "plan": "planning.measuring",
    "Plan": "planning.plans",
    "PRESETS": "presets",
    "preset": "presets",
    "ListedSteps": "schedule",
    "Phase": "schedule",
    "Schedule": "schedule",
    "Skipping": "schedule",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
