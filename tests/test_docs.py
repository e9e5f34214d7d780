"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_reason_code_is_documented_and_no_other() -> None:
    source = "".join(path.read_text() for path in (ROOT / "bnfold/folding").rglob("*.py"))
    used = set(re.findall(r'Reason\(\s*"([A-Z_]+)"', source))
    page = (ROOT / "docs/folding.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z_]+)` \| (?:kept|refused) \|", page, re.M))
    assert used == documented
