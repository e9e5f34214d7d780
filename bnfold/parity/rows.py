"""What a row of a tier's details says: its name, whether it holds, and the sentence for a person.

A row is read by the fields that it has, so that one of a tier which is not known here is named and judged as well. It
may come out of a document that somebody else wrote: a field of the wrong kind is as good as none.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from bnfold.documents import is_list
from bnfold.parity.triangle import Corner

Row: TypeAlias = Mapping[str, Any]
State: TypeAlias = Literal["fails", "cannot tell", "holds", "measured"]

_NAMES = ("name", "mutant", "configuration", "label", "case", "output", "site", "linear", "tensor", "input")
_STATES: Mapping[object, State] = {
    True: "holds", "holds": "holds", "nearest": "holds", "consistent with rounding": "holds",
    False: "fails", "fails": "fails", "wrong": "fails", "survived": "fails", "killed": "holds", "caught": "holds",
    "cannot tell": "cannot tell", "measured": "measured",
    "not present": "measured", "left out": "measured", "unchanged": "holds",
}  # fmt: skip
_PROVING = frozenset({"T1", "T2"})  # one of them must notice a wrong fold
_CORNER = {field.name: field for field in dataclasses.fields(Corner)}


@dataclasses.dataclass(frozen=True)
class Judged:
    """A row, its name, its state and a sentence. measured: nothing is claimed of it, and nothing is wrong with it."""

    row: Row
    name: str
    state: State
    sentence: str


def judged(rows: object) -> tuple[Judged, ...]:
    """The rows of a tier, in order; a name that comes again gets a number. What is no row is left out."""
    found = [_judged(row) for row in rows if isinstance(row, Mapping)] if is_list(rows) else []
    seen: Counter[str] = Counter()
    named = []
    for at, one in enumerate(found):
        name = one.name or f"row {at + 1}"
        seen[name] += 1
        name = f"{name} #{seen[name]}" if seen[name] > 1 else name
        named.append(dataclasses.replace(one, name=name))
    return tuple(named)


def number_in(row: Row, key: str) -> float | None:
    """A number of a row; None where there is none, or one that is not finite (which a document writes as null)."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None  # NaN is not, and some integers are not


def text_in(row: Row, key: str) -> str:
    """A text of a row, empty where there is none. Of an object, its `words` or `sentence`."""
    value = row.get(key)
    if isinstance(value, Mapping):
        value = value.get("words") or value.get("sentence")
    return value if isinstance(value, str) else ""


def texts_in(row: Row, key: str) -> tuple[str, ...]:
    """The texts of a list in a row."""
    value = row.get(key)
    return tuple(item for item in value if isinstance(item, str)) if is_list(value) and value else ()


def corner_of(row: Row) -> Corner | None:
    """The record of T3 that a row is, with NaN for numbers that are not finite; None where it is no such row."""
    if not {"output", "folded_rms", "unfolded_rms", "folded_error", "unfolded_error"} <= row.keys():
        return None
    known: dict[str, Any] = {}
    for name, field in _CORNER.items():
        if field.type in ("str", str):
            known[name] = text_in(row, name)
        elif name in row or field.default is dataclasses.MISSING:
            value = number_in(row, name)
            known[name] = math.nan if value is None else float(value)
    return Corner(**known)


def _judged(row: Row) -> Judged:
    state = _state(row)
    return Judged(row, _name(row), state, _sentence(row, state))


def _name(row: Row) -> str:
    if "not_nearest" in row and (tensor := text_in(row, "tensor")):
        return tensor
    if "killed_by" in row:
        where = [text_in(row, "network"), text_in(row, "move"), text_in(row, "tensor")]
        return f"{', '.join(part for part in where if part)}: {text_in(row, 'mutant')}"
    if (kind := text_in(row, "kind")) and (output := text_in(row, "output")):
        return f"{output}: {kind}"
    for key in _NAMES:
        if name := text_in(row, key):
            return f"{name} ({', '.join(norms)})" if key == "linear" and (norms := texts_in(row, "norms")) else name
    return ", ".join(f"{key} {value}" for key, value in row.items() if isinstance(value, str) and value)[:200]


def _state(row: Row) -> State:
    if text_in(row, "doubt"):
        return "cannot tell"
    if "killed_by" in row:  # outputs that differ are no proof that a tensor is wrong
        return "holds" if _PROVING.intersection(texts_in(row, "killed_by")) else "fails"
    for key in ("status", "holds", "verdict", "killed", "caught"):
        value = row.get(key)
        if isinstance(value, bool | str) and value in _STATES:
            return _STATES[value]
    if "not_nearest" in row:
        return "holds" if number_in(row, "not_nearest") == 0 else "fails"
    corner = corner_of(row)
    if corner is not None:
        return "holds" if corner.holds else "fails"
    if "bad" in row and number_in(row, "bad") != 0:
        return "fails"
    if text_in(row, "problem"):
        return "cannot tell"
    return "holds" if "bad" in row and not text_in(row, "note") else "measured"


def _sentence(row: Row, state: State) -> str:
    """Why it is so, empty where there is nothing to say."""
    said = text_in(row, "sentence") or text_in(row, "problem") or text_in(row, "doubt") or text_in(row, "note")
    if not said and state == "fails":
        said = _what_is_wrong(row)
    cause = text_in(row, "cause")
    return f"{said}; likely cause: {cause}" if said and cause and cause not in said else said or cause


def _what_is_wrong(row: Row) -> str:
    if "not_nearest" in row:
        where = row.get("worst_index")
        place = f", at {list(where)} in channel {row.get('worst_channel')}" if is_list(where) and where else ""
        return (
            f"{row.get('not_nearest')} of {row.get('elements')} values are not the nearest to the exact fold; the "
            f"worst{place}, is {measure(row, 'worst_ulp')} ulp off; expected at most 0.5"
        )
    if "worst_ratio" in row:
        return (
            f"{row.get('bad')} of {row.get('elements')} outputs differ by more than rounding can explain; the "
            f"worst, in channel {row.get('worst_channel')}, by {measure(row, 'worst_difference')}, "
            f"{measure(row, 'worst_ratio')} times its bound"
        )
    corner = corner_of(row)
    return "" if corner is None else corner.sentence()


def measure(row: Row, key: str) -> str:
    """A measured number in three digits; one that is not finite says so."""
    value = number_in(row, key)
    return "(not finite)" if value is None else f"{value:.3g}"
