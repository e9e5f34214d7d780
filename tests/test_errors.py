"""What is told of an error of other code."""

from __future__ import annotations

import pytest

from bnfold.errors import first_line, said


class Speechless(Exception):
    """What cannot be made a text."""

    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    ("problem", "line", "named"),
    [
        (ValueError("no such layer.\nat line 3"), "no such layer", "ValueError: no such layer"),
        (ValueError("\n\n  two lines: \r\nand more"), "two lines", "ValueError: two lines"),
        (KeyError("width"), "'width'", "KeyError: 'width'"),
        (ValueError(), "ValueError", "ValueError"),
        (OSError(" \n\t"), "OSError", "OSError"),
        (ValueError("x" * 400), "x" * 300, "ValueError: " + "x" * 300),
        (ValueError("..."), "ValueError", "ValueError"),
        (ValueError(":\nthe reason:"), "the reason", "ValueError: the reason"),
        (Speechless(), "Speechless", "Speechless"),
    ],
    ids=[
        "two lines",
        "a line that is empty",
        "a key",
        "nothing",
        "white space",
        "a long line",
        "dots",
        "a colon",
        "a text that raises",
    ],
)
def test_an_error_of_other_code_is_told_by_its_first_line_or_its_type(
    problem: Exception, line: str, named: str
) -> None:
    assert (first_line(problem), said(problem)) == (line, named)
