"""One log record for each finished run, on the channel "agentsd" at level INFO."""

import logging

from agentsd.presets import name_of
from agentsd.schedule import Schedule
from agentsd.unet.record import LastRun

_LOG = logging.getLogger("agentsd")


def log_run(run: LastRun, schedule: Schedule) -> None:
    """Log a finished run, with its figures as fields of the record.

    Example:
        >>> log_run(LastRun(full=9, skipped=11, stock=0, forced=()), agentsd.preset("fast"))
    """
    if not _LOG.isEnabledFor(logging.INFO):
        return
    forced = sum(number for _, number in run.forced)
    fields = {
        "steps": run.steps,
        "full": run.full,
        "skipped": run.skipped,
        "partial": len(run.partial),
        "calls": run.calls,
        "forced": forced,
        "schedule": name_of(schedule),
        "tolerance": schedule.skipping.tolerance,
    }
    _LOG.info(
        "run of %(steps)d steps: %(full)d full, %(skipped)d skipped, %(forced)d forced full", fields, extra=fields
    )
