from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bnfold.parity import ParityReport, TierResult
from bnfold.parity.report import PROOF, plain


def tier(name: str, status: str, *findings: str) -> TierResult:
    return TierResult(name, f"title of {name}", status, f"headline of {name}", {"number": 1.5}, findings)  # type: ignore[arg-type]


def report(*statuses: str) -> ParityReport:
    return ParityReport("net", 3, tuple(tier(f"T{at}", status, f"why {at}") for at, status in enumerate(statuses)))


@pytest.mark.parametrize(
    ("statuses", "holds", "code"),
    [
        (("holds", "holds"), True, 0),
        (("holds", "fails", "cannot tell"), False, 1),
        (("holds", "cannot tell"), None, 2),
        ((), None, 2),
    ],
)
def test_one_failing_tier_fails_and_an_open_one_leaves_it_open(
    statuses: tuple[str, ...], holds: bool | None, code: int
) -> None:
    found = report(*statuses)
    assert found.holds is holds
    assert found.exit_code == code


def test_findings_are_those_of_tiers_that_do_not_hold() -> None:
    assert report("holds", "fails", "cannot tell").findings == ("why 1", "why 2")


def test_the_table_has_a_line_a_tier_its_findings_and_the_verdict() -> None:
    lines = report("holds", "fails").to_table().splitlines()
    assert lines[0] == "parity of net/3"
    assert lines[2].split("  ") == ["T0", "title of T0", "holds", "headline of T0"]
    assert "    - why 1" in lines
    assert lines[-1] == "parity does not hold (T1)"
    whole = ParityReport("net", 3, tuple(tier(name, "holds") for name in PROOF))
    assert whole.to_table().endswith("parity holds: the folded model computes what the unfolded one does")


def test_a_run_that_left_tiers_out_does_not_claim_parity() -> None:
    verdict = report("holds", "holds").to_table().splitlines()[-1]
    assert verdict == "T0, T1 hold; T2, T3, T3b not run, so parity is not proven by this run"


def test_the_table_prints_what_a_bound_assumes() -> None:
    found = dataclasses.replace(tier("T2", "holds"), assumptions=("sums in any order", "nothing is flushed"))
    assert "T2 assumes: sums in any order; nothing is flushed" in ParityReport("net", 3, (found,)).to_table()
    assert "cannot tell" in report("cannot tell").to_table().splitlines()[-1]
    assert "no tier was run" in report().to_table()


def test_the_document_is_strict_json_and_leaves_out_a_version_that_is_not_known() -> None:
    found = ParityReport(
        "net", None, (TierResult("T1", "t", "fails", "h", {"worst": np.float64("inf"), "n": np.int64(2)}),)
    )
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert "version" not in document
    assert document["tiers"][0]["summary"] == {"worst": None, "n": 2}
    assert report("holds").to_dict()["version"] == 3


def test_plain_keeps_text_and_turns_tuples_into_lists() -> None:
    assert plain({"a": ("b", 1, None, True, float("nan"))}) == {"a": ["b", 1, None, True, None]}


def test_tiers_are_found_by_name() -> None:
    assert report("holds", "fails").tier("T1").status == "fails"
    with pytest.raises(KeyError):
        report("holds").tier("T9")
