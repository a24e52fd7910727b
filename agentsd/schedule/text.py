"""Schedules and settings of self-attention as JSON."""

import json
from dataclasses import replace
from typing import Any

from agentsd.attention.checks import check_fields, load_object, plain
from agentsd.attention.settings import Attention
from agentsd.schedule.listed import ListedSteps
from agentsd.schedule.phases import KINDS, Phase, Skipping
from agentsd.schedule.schedule import Schedule

_VERSION = 1  # of the JSON; raise it when an old text would change its meaning


def written(schedule: Schedule) -> str:
    """Return a schedule as JSON on one line; `Schedule.to_json` calls it.

    Example:
        >>> read(written(Schedule.constant(None, every=3))).is_full(1, 20)
        False
    """
    return json.dumps({"version": _VERSION, **schedule_object(schedule)})


def read(text: str | bytes) -> Schedule:
    """Return the schedule that `written` wrote; `Schedule.from_json` calls it.

    Example:
        >>> read('{"version": 1, "phases": [{"until": 1.0}]}') == Schedule.constant(None)
        True
    """
    data = load_object(text, "schedule", _VERSION)
    if "schedule" in data:
        raise ValueError(
            "schedule is the text of a calibration or of a plan, which holds one; read it with "
            "agentsd.Calibration.from_json or agentsd.Plan.from_json."
        )
    return schedule_from(data)


def attention_object(attention: Attention) -> dict[str, Any]:
    """Return settings of self-attention as JSON's types, with their kind.

    Example:
        >>> attention_object(agentsd.MergedTokens(merge_ratio=0.4))["kind"]
        'MergedTokens'
    """
    return {"kind": type(attention).__name__, **plain(attention)}


def attention_from(data: object, what: str = "attention") -> Attention:
    """Return the settings that `attention_object` wrote.

    Raises:
        ValueError: If the kind or a field is unknown, or a field is out of range.

    Example:
        >>> attention_from({"kind": "MergedTokens", "merge_ratio": 0.4}).merge_ratio
        0.4
    """
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{what}={data!r} must be a JSON object whose 'kind' is one of {', '.join(KINDS)}.")
    given = {name: value for name, value in data.items() if name != "kind"}
    made: Attention = KINDS[kind](**check_fields(KINDS[kind], given, what))
    return made


def schedule_object(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule as JSON's types, without a version.

    Example:
        >>> schedule_object(Schedule.constant(None))["phases"]
        [{'until': 1.0, 'every': 1}]
    """
    phases = [
        plain(replace(phase, attention=None))
        | ({} if phase.attention is None else {"attention": attention_object(phase.attention)})
        for phase in schedule.phases
    ]
    found = {**plain(schedule), "phases": phases}
    if not schedule.skipping.by_picture:  # schedules of before this field keep their text
        del found["skipping"]["by_picture"]
    return found


def schedule_from(data: object) -> Schedule:
    """Return the schedule that `schedule_object` wrote.

    Raises:
        ValueError: If a field is unknown, missing or out of range.

    Example:
        >>> schedule_from({"phases": [{"until": 1.0}]}) == Schedule.constant(None)
        True
    """
    given = dict(check_fields(Schedule, data, "schedule"))
    phases = given["phases"]
    if not isinstance(phases, list):
        raise ValueError(f"phases={phases!r} must be a JSON list of phases.")
    given["phases"] = tuple(_phase_from(phase, f"phases[{index}]") for index, phase in enumerate(phases))
    if "skipping" in given:
        skipping = dict(check_fields(Skipping, given["skipping"], "skipping"))
        if skipping.get("listed") is not None:
            listed = check_fields(ListedSteps, skipping["listed"], "skipping.listed")
            skipping["listed"] = ListedSteps(**listed)
        given["skipping"] = Skipping(**skipping)
    return Schedule(**given)


def _phase_from(data: object, what: str) -> Phase:
    given = dict(check_fields(Phase, data, what))
    if given.get("attention") is not None:
        given["attention"] = attention_from(given["attention"], f"{what}.attention")
    return Phase(**given)
