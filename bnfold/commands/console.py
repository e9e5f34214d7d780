"""What a command says: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

# C0 and C1 controls but newline and tab: names inside a model file are not ours and must not drive a terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ERASE_LINE = "\r\x1b[K"
_PROGRESS_WIDTH = 110
_SECONDS_BETWEEN_LINES = 30.0  # a log of a night of training stays short, and says that something happens
_COLOURS = {"folded": "32", "reduced": "36", "kept": "33", "refused": "1;31"}  # green, cyan, yellow, bold red


@dataclass
class Console:
    """Where a command writes.

    json: print exactly one JSON document on `out` instead of text, the first that there is. Progress appears on `err`:
    on a terminal in one line that is written over, elsewhere, as in a log, in a line every half minute. clock: seconds.
    """

    json: bool
    out: TextIO
    err: TextIO
    clock: Callable[[], float] = time.monotonic
    _last_line: float | None = None
    _line_open: bool = False
    _answered: bool = False

    def progress(self, text: str) -> None:
        """Show what is being done, in place of what was shown before."""
        line = printable(" ".join(text.split()))
        if self.err.isatty():
            self.err.write(_ERASE_LINE + line[:_PROGRESS_WIDTH])
            self._line_open = True
        elif self._is_time_for_a_line():
            self.err.write(line + "\n")
        else:
            return
        self.err.flush()

    def _is_time_for_a_line(self) -> bool:
        """Whether nothing was said for long; what is over before that says nothing but its result."""
        now = self.clock()
        if self._last_line is None:
            self._last_line = now
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True

    def note(self, text: str) -> None:
        """Write a line to stderr."""
        self._close_line()
        self.err.write(printable(text) + "\n")
        self.err.flush()

    def result(self, document: Mapping[str, Any], text: str, *, is_clean: bool = False) -> None:
        """Write the result to stdout: the document with --json, otherwise the text.

        is_clean: the text has no control characters but those of `paint`.
        """
        self._close_line()
        self._answer(to_json(document) if self.json else (text if is_clean else printable(text)) + "\n")

    @property
    def width(self) -> int | None:
        """The columns of the terminal that the result goes to; None where it goes elsewhere."""
        return shutil.get_terminal_size().columns if self.out.isatty() else None

    @property
    def paint(self) -> Callable[[str, str], str] | None:
        """What colours a text by a word for its meaning; None where colours are not wanted (https://no-color.org)."""
        if not self.out.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return None
        return lambda text, meaning: f"\x1b[{_COLOURS[meaning]}m{text}\x1b[0m" if meaning in _COLOURS else text

    def failure(self, message: str, name: str = "bnfold: ") -> None:
        """Write one sentence to stderr, `name` before it; with --json also as {"error": ...} to stdout."""
        sentence = " ".join(message.split())
        try:
            self.note(name + sentence)
        finally:
            if self.json and not self._answered:
                self._answer(to_json({"error": sentence}))

    def _answer(self, text: str) -> None:
        self._answered = True
        try:
            self.out.write(text)
            self.out.flush()
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise OSError(problem.errno, problem.strerror, "the standard output") from None

    def _close_line(self) -> None:
        if self._line_open:
            self.err.write(_ERASE_LINE)
            self._line_open = False


def printable(text: str) -> str:
    """The text with control characters spelt out."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def shown(path: Path) -> str:
    """A path as a person in the current folder would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def to_json(document: Mapping[str, Any]) -> str:
    """One JSON document. JSON has no NaN and no infinity: they are written as the strings "nan", "inf", "-inf"."""
    return json.dumps(_finite(document), indent=2, allow_nan=False, default=_plain) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _plain(value: Any) -> Any:
    """Paths as text; numpy's numbers and arrays as Python's."""
    return _finite(value.tolist()) if hasattr(value, "tolist") else str(value)
