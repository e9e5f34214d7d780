"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bnfold.folding.moves import MOVES
from bnfold.folding.moves.constant_map import LARGEST
from bnfold.folding.report import NormNumbers
from bnfold.pages.drawing import MOST_NODES

ROOT = Path(__file__).parents[1]


def test_every_reason_code_is_documented_and_no_other() -> None:
    source = "".join(path.read_text() for path in (ROOT / "bnfold/folding").rglob("*.py"))
    used = set(re.findall(r'Reason\(\s*"([A-Z_]+)"', source))
    page = (ROOT / "docs/folding.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z_]+)` \| (?:kept|refused) \|", page, re.M))
    assert used == documented


def test_every_move_is_documented_with_its_cost_and_no_other() -> None:
    page = (ROOT / "docs/folding.md").read_text()
    page = page.partition("## Moves")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    documented = {row[0].strip(" `"): row[-1].strip() for row in rows}
    assert documented.keys() == {move.name for move in MOVES}
    for move in MOVES:
        assert documented[move.name].startswith("none") == (not move.cost)


def test_every_number_of_a_norm_is_documented() -> None:
    page = (ROOT / "docs/folding.md").read_text()
    assert all(f"| `{name}` |" in page for name in NormNumbers.__dataclass_fields__)
    assert f"{LARGEST:,} elements" in page
    assert f"{MOST_NODES:,} nodes" in page


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_no_heading_stands_twice_on_a_page(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ .+", text, re.M)
    assert len(headings) == len(set(headings))
