"""Strict JSON: what may stand in a document that somebody else wrote, and one sentence when it does not.

`json.loads` alone takes duplicate keys (the last one wins), NaN, numbers beyond a float, lone surrogates and any
depth that the stack holds. The documents of a bundle have none of these.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

from bnfold.errors import BundleError

MAX_BYTES = 2**26  # 64 MiB; a manifest of ten thousand tensors has about 2
MAX_DEPTH = 32


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """True for a list or a tuple, of a document or of a record."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Read one JSON object. `what` names the document in messages.

    Raises BundleError for anything but UTF-8 JSON with unique keys, finite numbers, and no more than MAX_DEPTH levels
    and MAX_BYTES bytes.
    """
    if len(data) > MAX_BYTES:
        raise _bad(what, f"has {len(data)} bytes", f"at most {MAX_BYTES}")
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError:
        raise _bad(what, "is not UTF-8 text", "a JSON object") from None
    except RecursionError:
        raise _bad(what, "is nested too deeply to be read", f"at most {MAX_DEPTH} levels") from None
    except ValueError as problem:  # JSONDecodeError and the refusals below
        raise _bad(what, f"is not strict JSON ({problem})", "a JSON object") from None
    if not isinstance(document, dict):
        raise _bad(what, f"holds {_kind(document)}", "a JSON object")
    _check_values(document, what)
    return document


def dump_object(document: Mapping[str, Any], what: str) -> bytes:
    """Write a JSON object as UTF-8. Raises BundleError for what `parse_object` would refuse, and foreign types."""
    try:
        text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        data = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as problem:
        raise BundleError(
            f"{what} cannot be written as JSON ({problem});"
            " expected finite numbers, text, lists and objects; correct it"
        ) from None
    parse_object(data, what)
    return data


@dataclass(frozen=True)
class Fields:
    """The fields of one JSON object, each read with a check; a BundleError names `what`, the key and the value."""

    what: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, value: object, what: str, required: Iterable[str], optional: Iterable[str] = ()) -> Fields:
        """Take an object with exactly the required keys and no others than the optional ones."""
        if not isinstance(value, Mapping):
            raise _bad(what, f"is {_kind(value)}", "an object")
        required, optional = list(required), list(optional)
        for key in required:
            if key not in value:
                raise _bad(what, f"has no key {key!r}", f"the keys {', '.join(required)}")
        for key in value:
            if key not in required and key not in optional:
                raise _bad(what, f"has the unknown key {key!r:.80}", f"only {', '.join([*required, *optional])}")
        return cls(what, value)

    def text(self, key: str, *, longest: int = 1000) -> str:
        """A printable, non-empty string."""
        value = self.values[key]
        if not isinstance(value, str) or not value or len(value) > longest or not value.isprintable():
            self.refuse(key, f"printable text of 1 to {longest} characters")
        return value

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """One of the allowed strings."""
        value = self.values[key]
        if not isinstance(value, str) or value not in allowed:
            self.refuse(key, f"one of {', '.join(allowed)}")
        return value

    def integer(self, key: str, lowest: int, highest: int) -> int:
        """An integer in [lowest, highest]; true and 1.0 are none."""
        value = self.values[key]
        if type(value) is not int or not lowest <= value <= highest:
            self.refuse(key, f"an integer from {lowest} to {highest}")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.values[key]
        if not _is_number(value):
            self.refuse(key, "a finite number")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self.values[key]
        if not isinstance(value, list | tuple) or not all(_is_number(item) for item in value):
            self.refuse(key, "a list of finite numbers")
        return tuple(float(item) for item in value)

    def items(self, key: str) -> Sequence[Any]:
        """A list of anything."""
        value = self.values[key]
        if not isinstance(value, list | tuple):
            self.refuse(key, "a list")
        return value

    def texts(self, key: str) -> dict[str, str]:
        """An object whose keys and values are strings."""
        value = self.values[key]
        if not isinstance(value, Mapping) or not all(
            isinstance(k, str) and isinstance(v, str) for k, v in value.items()
        ):
            self.refuse(key, "an object of strings")
        return dict(value)

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise BundleError for the value under `key`."""
        raise _bad(self.what, f"has {self.values[key]!r:.80} as {key!r}", expected)


def _bad(what: str, found: str, expected: str) -> BundleError:
    return BundleError(f"{what} {found}; expected {expected}; correct it, or have it written again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = Counter(key for key, _ in pairs)
        twice = keys.most_common(1)[0][0]
        raise ValueError(f"the key {twice!r:.80} stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is beyond a float")
    return value


def _check_values(document: dict[str, Any], what: str) -> None:
    # A loop with its own stack: the document may be as deep as the parser's limit, which is near ours.
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not _is_unicode(value):
                raise _bad(what, "holds half of a surrogate pair", "Unicode text")
        if not below:
            return
        level = below
    raise _bad(what, "is nested too deeply", f"at most {MAX_DEPTH} levels")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond a float
        return False


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")
