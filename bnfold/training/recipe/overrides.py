"""Single values of a recipe, given on the command line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from bnfold.errors import DataError

# A text without quotes, as a shell leaves it; what begins like a number or is a TOML word is none.
_WORD = re.compile(r"(?!(?:true|false|inf|nan)$)[A-Za-z_./][A-Za-z0-9_./:-]*")


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """A TOML document. Raises DataError for what is none; what: how the sentence names it."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise DataError(f"{what} is nested too deeply to be read; expected tables of plain values") from None
    except ValueError as problem:  # TOMLDecodeError, and integers of more digits than Python converts
        raise DataError(f"{what} is no TOML: {problem}") from None


def override(document: dict[str, Any], text: str, path: Path) -> None:
    """Put `key=value` into a document; dots stand between tables. Raises DataError."""
    key, equals, value_text = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise DataError(f"--set {text}: expected key=value, with dots between tables, say train.epochs=5")
    if _WORD.fullmatch(value_text.strip()):
        value: Any = value_text.strip()
    else:
        parsed = parse_toml(f"value = {value_text}", f"--set {text:.80}")
        if len(parsed) != 1:
            raise DataError(f"--set {key}: found several values, expected one; give --set once for each key")
        value = parsed["value"]
    table = document
    for part in keys[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise DataError(f"--set {text}: '{part}' is a value in {path}, not a table; name a key of a table")
    table[keys[-1]] = value
