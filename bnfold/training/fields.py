"""Keys of a table, declared once as the fields of a dataclass: what a TOML file may say is read, checked and documented
from the declarations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

_MOST_ITEMS = 64


class Faults(Protocol):
    """How a document says what is wrong with one of its keys. Each raises."""

    def unknown(self, name: str, known: tuple[str, ...]) -> NoReturn:
        """A key that there is not."""

    def missing(self, name: str) -> NoReturn:
        """A key without a default is not there."""

    def refused(self, name: str, value: object, expected: str) -> NoReturn:
        """A value that the key does not take."""


class _Required:
    """The default of a key that has none."""


REQUIRED = _Required()


def key(
    meaning: str, default: Any = REQUIRED, *, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> Any:
    """A field: what it means, its default, and the range of a number or of each number of a list.

    above: the lowest value itself is left out. The type is one of bool, int, float, str, Literal, tuple[int, ...] and
    int | tuple[int, ...].
    """
    metadata = {"meaning": meaning, "low": low, "high": high, "above": above, "required": default is REQUIRED}
    return dataclasses.field(default=None if default is REQUIRED else default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """The description of one key. choices: of a text, empty where any will do."""

    name: str
    kind: Any
    choices: tuple[str, ...]
    default: Any
    required: bool
    meaning: str
    low: float
    high: float
    above: bool

    @property
    def expected(self) -> str:
        """The values that it takes, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "a text"
        if self.kind is float:
            return f"a number {'above' if self.above else 'from'} {self.low:g} up to {self.high:g}"
        numbers = f"from {self.low:g} to {self.high:g}" if self.high < 1e6 else f"from {self.low:g}"
        if self.kind is int:
            return f"an integer {numbers}"
        either = "an integer or " if self._takes_one else ""
        return f"{either}a list of 1 to {_MOST_ITEMS} integers {numbers}"

    def check(self, value: object, faults: Faults) -> Any:
        """The value as the field holds it."""
        if not self._takes(value):
            faults.refused(self.name, value, self.expected)
        if self.kind is float:
            return float(value)  # type: ignore[arg-type]
        return tuple(value) if isinstance(value, list) else value

    @property
    def _takes_one(self) -> bool:
        """Whether it takes an integer in place of a list of them."""
        return bool(self.kind == int | tuple[int, ...])

    def _takes(self, value: Any) -> bool:
        if self._takes_one and type(value) is int:
            return self._holds(value)
        if self.kind is int or self.kind is float:
            return type(value) in (int, self.kind) and self._holds(value)
        if self.kind is bool or self.kind is str:
            return type(value) is self.kind and (not self.choices or value in self.choices)
        is_list = isinstance(value, list | tuple) and 1 <= len(value) <= _MOST_ITEMS
        return is_list and all(type(item) is int and self._holds(item) for item in value)

    def _holds(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)


def describe(table: type) -> Iterator[Key]:
    """The keys of a table that `key` declared, in order; fields that it did not declare are left out."""
    hints = get_type_hints(table)
    for field in dataclasses.fields(table):
        if "meaning" in field.metadata:
            hint = hints[field.name]
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            yield Key(field.name, str if choices else hint, choices, default=field.default, **field.metadata)


def read(table: type[T], values: Mapping[str, object], faults: Faults) -> T:
    """A table from its values, every one of them checked. Raises what `faults` raises."""
    keys = {described.name: described for described in describe(table)}
    for name in values:
        if name not in keys:
            faults.unknown(name, tuple(keys))
    found = {}
    for name, described in keys.items():
        if name in values:
            found[name] = described.check(values[name], faults)
        elif described.required:
            faults.missing(name)
    return table(**found)
