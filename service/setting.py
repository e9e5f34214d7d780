"""One setting: what it is, how a text becomes its value, and which values it takes.

`setting(...)` declares a field of `service.settings.Settings`; `describe` reads the declarations back. Flags,
variables, the keys of a TOML file and docs/settings.md are all made from them, so that a new setting is one line.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bnfold.errors import BnfoldError

PREFIX = "BNFOLD_"
_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_UNITS: dict[str, Mapping[str, float]] = {"bytes": _SIZES, "s": _TIMES}
_NUMBER = re.compile(r"([0-9.eE+-]+|nan|inf)\s*([A-Za-z]*)", re.A)
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def setting(
    default: Any,
    sentence: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    unit: str = "",
    group: str = "",
    flag: str = "",
) -> Any:
    """A field with its default and what it is for. unit: "bytes" and "s" take texts such as 64MiB and 500ms too.

    low, high: the range of a number, ends included. group: a heading to list it under; the last one given holds on.
    flag: its name on the command line where that is not --name-of-the-field.
    """
    return dataclasses.field(
        default=default,
        metadata={"help": sentence, "low": low, "high": high, "unit": unit, "group": group, "flag": flag},
    )


@dataclasses.dataclass(frozen=True)
class Setting:
    """The description of one field. kind: bool, int, float, str or Path; optional: None is a value too.

    flag: its name on the command line.
    """

    name: str
    kind: type
    optional: bool
    default: Any
    help: str
    group: str
    low: float
    high: float
    unit: str
    flag: str
    choices: tuple[str, ...]

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.name.upper()

    @property
    def expected(self) -> str:
        """The values that it takes, in words."""
        if self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        if self.kind is bool:
            return "true or false"
        if self.kind in (int, float):
            number = {"bytes": "a size", "s": "a time"}.get(self.unit, "a whole number")
            example = {"bytes": ", as in 64MiB", "s": ", as in 30s or 500ms"}.get(self.unit, "")
            return f"{number} from {self.write(self.low)} to {self.write(self.high)}{example}"
        return "a path" if self.kind is Path else "a text in one line"

    def read(self, text: str) -> Any:
        """The value that a text stands for. Raises BnfoldError."""
        if self.kind is bool:
            if text.strip().lower() not in _TRUTH:
                raise self.refuse(text)
            return _TRUTH[text.strip().lower()]
        if self.kind in (int, float):
            return self._number(text)
        return self.kind(text)

    def accept(self, value: object) -> Any:
        """The value of a TOML file or of an argument, as the field holds it. Raises BnfoldError."""
        if isinstance(value, str) and self.kind is not str:
            value = self.read(value)
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        self.check(value)
        return value

    def check(self, value: object) -> None:
        """Raise BnfoldError for a value that the field does not take."""
        if value is None and self.optional:
            return
        if self.kind in (int, float):
            numbers = (int,) if self.kind is int else (int, float)
            if isinstance(value, bool) or not isinstance(value, numbers) or not self.low <= value <= self.high:
                raise self.refuse(value)
            return
        if not isinstance(value, self.kind) or (self.choices and value not in self.choices):
            raise self.refuse(value)
        if self.kind is not bool and not str(value).isprintable():
            raise self.refuse(value)

    def write(self, value: Any) -> str:
        """The text of a value; `read` of it gives the value back. None is the empty text."""
        if value is None:
            return ""
        if self.kind is bool:
            return "true" if value else "false"
        if self.unit == "bytes":
            fitting = (item for item in reversed(_SIZES.items()) if value >= item[1] and value % item[1] == 0)
            name, size = next(fitting, ("B", 1))
            return f"{int(value) // size}{'' if name == 'B' else name}"
        if self.kind in (int, float) and math.isfinite(value):
            return f"{value:g}{self.unit}" if float(f"{value:g}") == value else f"{value!r}{self.unit}"
        return str(value)

    def refuse(self, value: object, expected: str = "") -> BnfoldError:
        """The error for a value that is not taken."""
        found = str(value) if isinstance(value, Path) else value
        return BnfoldError(
            f"the server setting {self.name} ({self.flag}, {self.variable}) is {found!r:.80}; "
            f"expected {expected or self.expected}; correct it"
        )

    def _number(self, text: str) -> Any:
        units: Mapping[str, float] = _UNITS.get(self.unit, {})
        match = _NUMBER.fullmatch(text.strip())
        if match is None or (match[2] and match[2] not in units):
            raise self.refuse(text)
        try:
            number = self.kind(match[1])
        except ValueError:
            raise self.refuse(text) from None
        return number * units[match[2]] if match[2] else number


def describe(settings: type) -> dict[str, Setting]:
    """The settings of a class by name, in the order of its fields."""
    kinds = get_type_hints(settings)
    found: dict[str, Setting] = {}
    group = ""
    for field in dataclasses.fields(settings):
        declared = dict(field.metadata)
        group = declared["group"] = declared["group"] or group
        declared["flag"] = declared["flag"] or "--" + field.name.replace("_", "-")
        kind, optional, choices = _kind(kinds[field.name])
        found[field.name] = Setting(field.name, kind, optional, field.default, choices=choices, **declared)
    return found


def _kind(hint: Any) -> tuple[Any, bool, tuple[str, ...]]:
    """The type of a field, whether it may be None, and its choices."""
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        return str, optional, get_args(hint)
    return hint, optional, ()
