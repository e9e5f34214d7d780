"""The report as a table that fits its terminal, and as JSON of this release and of the first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.errors import FoldError
from bnfold.folding.moves import MOVES
from bnfold.folding.remedies import REMEDIES
from bnfold.folding.report import Declined, ErrorBound, FoldReport, NormNumbers, NormOutcome
from bnfold.folding.table import draw, paragraph, plain

SOURCE = Path(__file__).parents[2] / "bnfold/folding"
NUMBERS = NormNumbers(2.5, 0.01, 7.0)
ROWS = (
    NormOutcome("stem.bn", "BatchNorm", "folded", "", "stem.conv", "merged into Conv 'stem.conv'", numbers=NUMBERS),
    NormOutcome(
        "blocks.0.attention.projection.norm", "BatchNorm", "kept", "PAD_SHIFT", "", "its shift would meet zeros",
        "--moves all (ones_channel)", "behind Relu 'act', before Conv 'conv'", NUMBERS,
    ),
    NormOutcome("head.bn", "BatchNorm", "refused", "TRAINING_MODE", "", "it normalises by the batch"),
)  # fmt: skip
REPORT = FoldReport(
    ROWS,
    moves=("linear_to_norm",),
    keep=("a*",),
    declined=tuple(Declined("ones_channel", f"n{at}", "it costs a channel") for at in range(5)),
    bounds=(ErrorBound("stem.conv", "float32", ("stem.bn",), 1.0, 2e-6, (1e-6, 2e-6)),),
)


def test_a_report_survives_json() -> None:
    assert FoldReport.from_dict(json.loads(json.dumps(REPORT.to_dict()))) == REPORT


def test_the_report_of_the_first_release_is_read() -> None:
    row = {"name": "bn", "kind": "BatchNorm", "outcome": "folded", "reason": "", "target": "conv", "detail": "merged"}
    report = FoldReport.from_dict({"counts": {"folded": 1}, "norms": [row]})
    assert report == FoldReport((NormOutcome("bn", "BatchNorm", "folded", "", "conv", "merged"),))
    assert (report.moves, report.keep, report.declined, report.bounds) == ("default", (), (), ())


@pytest.mark.parametrize(
    "document",
    [{}, {"norms": [1]}, {"norms": [{"name": "x"}]}, {"norms": [], "declined": [{}]}, {"norms": [], "bounds": [{}]},
     {"norms": [], "keep": 3}],
)  # fmt: skip
def test_what_is_no_report_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(FoldError, match="schema"):
        FoldReport.from_dict(document)


def test_the_table_says_where_why_and_what_it_would_take() -> None:
    table = " ".join(REPORT.to_table(width=250).split())
    for words in (
        "into stem.conv",
        "behind Relu 'act'",
        "its shift would meet zeros [PAD_SHIFT]",
        "would take: --moves",
    ):
        assert words in table
    assert "declined: ones_channel for 'n0', 'n1', 'n2' and 2 more: it costs a channel" in table
    assert table.endswith("3 norms found: 1 folded, 1 kept, 1 refused")
    assert FoldReport(()).to_table() == "no norm found"


@pytest.mark.parametrize("width", [24, 40, 60, 80, 110, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    wide = max(map(len, REPORT.to_table(width=width).splitlines()))
    assert wide <= max(width, 30)  # three columns of names take that much
    assert max(map(len, REPORT.to_numbers(width=80).splitlines())) <= 80


def test_the_columns_of_a_table_stand_under_one_another() -> None:
    lines = REPORT.to_table(width=110).splitlines()
    starts = [match.start() for match in re.finditer(r"-+", lines[1])]
    for line in lines[2 : lines.index("")]:
        assert all(start >= len(line) or line[start - 1] == " " for start in starts[1:])
    assert [lines[0][start] for start in starts] == ["n", "w", "o", "w"]


def test_colours_change_no_character_that_is_seen() -> None:
    painted = REPORT.to_table(width=80, paint=lambda text, meaning: f"<{meaning}>{text}</>")
    assert "<kept>kept</>" in painted
    assert re.sub(r"<\w*>|</>", "", painted) == REPORT.to_table(width=80)


def test_a_table_without_reasons_has_no_column_for_them() -> None:
    table = FoldReport(ROWS[:1]).to_table()
    assert "why" not in table
    assert "outcome" in table


@given(st.text(), st.text(), st.integers(24, 120))
def test_names_from_hostile_files_break_no_row(name: str, detail: str, width: int) -> None:
    rows = (NormOutcome(name, "BatchNorm", "kept", "DTYPE", "", detail, where=name), ROWS[0])
    report = FoldReport(rows, declined=(Declined("m", name, detail),), bounds=REPORT.bounds)
    for text in (report.to_table(width=width), report.to_numbers(width=width)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert "folded" in report.to_table(width=width)


def test_marks_that_hide_or_reverse_text_are_spelt_out() -> None:
    assert plain("a\x1b[2J\u202eb\nc") == "a\\x1b[2J\\u202eb\\x0ac"
    assert paragraph("x " * 40, width=30).splitlines()[1].startswith("    x")


def test_long_words_break_behind_dots() -> None:
    table = draw(("a", "b", "c", "d"), [(("module.layer.block.norm", "w", "o", ""), "")], width=24)
    assert "module." in table


def test_every_reason_code_has_a_remedy_and_no_other() -> None:
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    used = set(re.findall(r'Reason\(\s*"([A-Z_]+)"', source))
    assert used == set(REMEDIES)


def test_moves_that_remedies_speak_of_exist() -> None:
    names = {move.name for move in MOVES}
    assert {"copy_shared_weight", "ones_channel", "constant_map"} <= names
