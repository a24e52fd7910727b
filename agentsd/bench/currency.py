"""Whether rows of result files were measured with the settings and rules that a schedule has now."""

from collections.abc import Mapping, Sequence

from agentsd.bench.rows import Row
from agentsd.schedule import Schedule
from agentsd.unet.controller import RULES


def facts_of(schedule: Schedule | None) -> Row:
    """Return what a row says about its schedule: its text, and the rules of the controller that it asks.

    Example:
        >>> facts_of(None)
        {'settings': ''}
    """
    rules = {} if schedule is None or schedule.skipping.tolerance is None else {"rules": RULES}
    return {"settings": "" if schedule is None else schedule.to_json(), **rules}


def holds(row: Row, schedule: Schedule | None) -> bool:
    """Return whether a row was measured with a schedule as it is now; without a schedule it always was.

    Args:
        row: The row. Fields of its settings that are left out have their defaults.
        schedule: The schedule, `None` for stock.

    Example:
        >>> from agentsd.presets import PRESETS
        >>> holds(facts_of(PRESETS["fast"]), PRESETS["fast"]), holds({"settings": "others"}, PRESETS["fast"])
        (True, False)
    """
    if schedule is None:
        return True
    try:
        same = Schedule.from_json(row["settings"]) == schedule
    except ValueError:  # written by an earlier version
        return False
    return same and row.get("rules") == facts_of(schedule).get("rules")


def current(rows: Sequence[Row], schedules: Mapping[str, Schedule | None]) -> list[Row]:
    """Return the rows whose arms still have the settings and rules that they were measured with.

    Args:
        rows: The rows.
        schedules: The schedule of each arm of today, `None` for stock.

    Example:
        >>> current([{"arm": "stock"}, {"arm": "of another time"}], {"stock": None})
        [{'arm': 'stock'}]
    """
    return [row for row in rows if row["arm"] in schedules and holds(row, schedules[row["arm"]])]
