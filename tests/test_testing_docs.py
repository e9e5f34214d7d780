"""docs/prove-your-own-fold.md: its code runs as it stands, and prints what stands below it."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "prove-your-own-fold.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def words(text: str) -> str:
    """Text on one line with its numbers left out: another processor rounds otherwise."""
    return " ".join(re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "#", text).split())


def test_code_of_the_page_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    printed, checked = "", 0
    for block in BLOCK.finditer(PAGE):
        code = block["code"]
        if block["language"] == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)  # noqa: S102 - the page's own code
            printed = out.getvalue()
        elif block["language"] == "text":
            assert words(printed) == words(code)
            checked += 1
        elif block["language"] == "console":
            command, _, output = code.partition("\n")
            arguments = command.removeprefix("$ bnfold ").split()
            ran = subprocess.run([sys.executable, "-m", "bnfold", *arguments], capture_output=True, text=True)
            assert ran.returncode == 1, ran.stderr
            assert words(ran.stdout) == words(output)
            checked += 1
    assert checked == 4


def test_test_of_the_page_is_python_and_uses_the_fixture():
    (code,) = (block["code"] for block in BLOCK.finditer(PAGE) if block["language"] == "py")
    names: dict[str, object] = {"network": 1, "fold": lambda network: network + 1, "images": 3}
    exec(code, names)  # noqa: S102 - the page's own code
    given: list[tuple[object, ...]] = []
    names["test_my_fold"](lambda *arguments: given.append(arguments))  # type: ignore[operator]
    assert given == [(1, 2, 3)]


def test_every_link_of_the_page_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert all((Path(__file__).resolve().parent.parent / "docs" / link).exists() for link in links)
