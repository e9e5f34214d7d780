"""The page of a parity report: what it says, that it is whole and harmless, and that no document breaks it."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import BROWSER, HOSTILE, Reader

from bnfold.pages import parity_page
from bnfold.pages.parity_plots import Axis, log_axis
from bnfold.pages.parity_values import figure

FIELDS = (
    "tensor", "output", "linear", "norms", "worst_ulp", "worst_ratio", "bad", "not_nearest", "elements", "problem",
    "doubt", "folded_rms", "unfolded_rms", "folded_error", "unfolded_error", "factor", "configuration", "door",
    "identical", "difference", "status", "holds", "cause", "bad_channels", "worst_index", "sizes",
)  # fmt: skip


def tensor(name: str, wrong: int = 0, worst: float | None = 0.49, **more: Any) -> dict[str, Any]:
    return {
        "tensor": name, "role": "weight", "linear": "conv", "norms": ["bn"], "elements": 4096, "not_nearest": wrong,
        "worst_ulp": worst, "worst_index": [7, 2], "worst_channel": 7, **more,
    }  # fmt: skip


def site(name: str, ratio: float | None = 0.1, bad: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "linear": name, "norms": ["bn"], "tensor": f"{name}.weight", "fan_in": 27, "elements": 100, "bad": bad,
        "worst_ratio": ratio, "worst_difference": 1e-7, "worst_channel": 3, "problem": "", "note": "", **more,
    }  # fmt: skip


def corner(name: str, folded: float = 8e-7) -> dict[str, Any]:
    return {
        "output": name, "elements": 3690, "unfolded_error": 8e-6, "folded_error": 6e-6, "unfolded_rms": 1e-6,
        "folded_rms": folded, "scale": 19.0, "truth_rms": 5.0, "factor": 2.0, "unit": 6e-8, "smallest": 1e-45,
        "problem": "", "doubt": "",
    }  # fmt: skip


def tier(name: str, status: str = "holds", *rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "tier": name, "title": f"title of {name}", "status": status, "headline": f"headline of {name}", "summary": {},
        "findings": [] if status == "holds" else [f"finding of {name}"], "details": list(rows), **more,
    }  # fmt: skip


def document(*tiers: dict[str, Any], holds: bool | None = True, **more: Any) -> dict[str, Any]:
    return {
        "schema_version": 1, "name": "net", "version": 3, "holds": holds, "tiers": list(tiers),
        "environment": {"python": "3.11.7", "threads": 1}, "notes": ["a note"], **more,
    }  # fmt: skip


def whole(**more: Any) -> dict[str, Any]:
    margins = {"rows": 359, "smallest_margin": 0.27, "median_margin": 9.2, "largest_difference": 5.7e-6}
    return document(
        tier("T0"), tier("T1", "holds", tensor("w")), tier("T2", "holds", site("conv")),
        tier("T3", "holds", corner("logits")), tier("T3b"), tier("T4", summary=margins), **more,
    )  # fmt: skip


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert {"script", "img", "link", "iframe", "object", "form"}.isdisjoint(reader.tags)
    assert not any(name.startswith("on") or name == "src" for name in reader.attributes)
    assert not re.search(r"https?:|url\(|@import", page)
    return reader


def text(page: str) -> str:
    """What a person reads, without the style."""
    return " ".join(read(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)).text.split())


def verdict(page: str) -> tuple[str, str]:
    found = re.search(r'<div class="verdict ([a-z-]+)" role="status">(.*?)</div>', page, re.DOTALL)
    assert found is not None
    return found[1], re.sub(r"<.*?>", "", found[2])


def test_a_proof_says_that_it_holds_and_shows_every_tier_row_and_note() -> None:
    page = parity_page(whole())
    assert verdict(page) == (
        "holds", "✓ Parity holds: the folded model computes what the unfolded one does, by all 6 tiers that were run."
    )  # fmt: skip
    said = text(page)
    for name in ("T0", "T1", "T2", "T3", "T3b", "T4"):
        assert f"headline of {name}" in said
    assert "a note" in said
    assert "the float nearest to its exact value" in said
    assert "Not claimed here, since it was not run: T3h" in said
    assert "weight of conv, folded with bn" in said
    assert "bnfold verify net/3" in said
    assert page.count("<svg") >= 5


def test_what_fails_comes_first_in_verdict_findings_and_rows() -> None:
    rows = [tensor(f"w{at}") for at in range(5)]
    rows[3] = tensor("w3", 64, 333.0, bad_channels=[7], bad_channel_count=1, cause={"words": "eps was dropped"})
    page = parity_page(
        document(tier("T0"), tier("T1", "fails", *rows), tier("T2", "cannot tell"), tier("T3"), holds=False)
    )
    state, says = verdict(page)
    assert state == "fails"
    assert (
        says == "✕ Parity does not hold: 1 of 4 tiers fail: T1 title of T1. 1 of 4 tiers cannot tell: T2 title of T2."
    )
    said = text(page)
    assert "finding of T1" in said
    assert "wrong in channel 7, worst at [7, 2], likely cause: eps was dropped" in said
    section = page[page.index('<section id="tier-1">') :]
    assert section.index(">w3<") < section.index(">w0<")


@pytest.mark.parametrize(
    ("tiers", "holds", "state"),
    [
        ([], None, "cannot-tell"),
        ([tier("T1", "cannot tell")], None, "cannot-tell"),
        ([tier("T1", "fails"), tier("T2")], False, "fails"),
        ([tier("T4")], True, "cannot-tell"),  # a proof needs more than that
        ([tier("T1", "fails")], True, "fails"),  # the document contradicts itself
        ([tier(name) for name in ("T0", "T1", "T2", "T3", "T3b")], False, "cannot-tell"),
        ([tier(name) for name in ("T0", "T1", "T2", "T3", "T3b")], True, "holds"),
        ([{**tier("T1"), "status": "passes"}], None, "cannot-tell"),
    ],
)
def test_the_verdict_is_never_better_than_the_tiers_or_the_document(tiers: Any, holds: Any, state: str) -> None:
    assert verdict(parity_page(document(*tiers, holds=holds)))[0] == state


def test_of_many_sites_all_bad_ones_are_shown_and_the_rest_is_counted() -> None:
    bad = {5: 30.0, 77: 2.0, 199: None}
    rows = [site(f"s{at}", bad.get(at, 0.01), 3 if at in bad else 0) for at in range(200)]
    rows[50]["problem"] = "a divisor may be zero"
    page = parity_page(document(tier("T2", "fails", *rows), holds=False))
    said = text(page)
    section = page[page.index('<table class=""') :]
    for at in (*bad, 50):
        assert f">s{at}<" in section
    shown = len(re.findall(r'<span class="name">s\d+<', section))
    assert shown < 40
    assert f"… and {200 - shown} more sites that hold" in said
    plot = page[page.index('class="over"') :].partition("</svg>")[0]
    assert plot.count("<rect") == 199  # all but the one that has no ratio, in the order of the graph
    assert [at for at, kind in enumerate(re.findall(r'class="f (\w+)"', plot)) if kind == "fails"] == [5, 76, 198]


def test_a_bundle_of_ten_thousand_tensors_stays_readable() -> None:
    rows = [tensor(f"w{at}", *((4, 99.0) if at == 5000 else ())) for at in range(10_000)]
    page = parity_page(document(tier("T1", "fails", *rows), holds=False))
    assert len(page) < 400_000
    assert ">w5000<" in page
    assert "9,987 more tensors" in text(page)
    assert "Each bar is the worst of 25" in page
    plot = page[page.index('class="over"') :].partition("</svg>")[0]
    assert plot.count('class="f fails"') == 1


def test_rows_tiers_and_fields_that_are_not_known_are_shown_as_they_are() -> None:
    unknown = tier(
        "T9", "fails", {"mutant": "eps dropped", "killed": False, "T1": True}, {"mutant": "x", "killed": True}
    )
    known = tier("T1", "holds", tensor("w", **{"new field": [1, 2]}), tensor("v", **{"new field": 3}))
    page = parity_page(document(unknown, known, holds=False, signature={"key": "abc"}))
    said = text(page)
    for words in ("headline of T9", "eps dropped", "new field: 1, 2", "new field: 3", "signature", "key: abc"):
        assert words in said


def test_decisions_show_margins_beside_the_difference() -> None:
    summary = {
        "largest_difference": 1e-5, "smallest_margin": 0.2, "margin_quantiles": {"0": 0.2, "0.5": 9.0, "1": 17.0},
        "margin_above_difference": {"1 times": 1.0, "100 times": 0.9985}, "kl_max": 3e-13, "agreement": 1.0,
    }  # fmt: skip
    page = parity_page(document(tier("T4", summary=summary)))
    said = text(page)
    assert "The least margin is 20,000 times the largest difference" in said
    assert "99.85%" in said
    assert "KL divergence, largest (nats)" in said
    assert page.count("<circle") == 4
    tie = parity_page(document(tier("T4", summary={**summary, "margin_quantiles": {"0": 0.0, "1": 1.0}})))
    assert "zero: a tie" in text(tie)


def test_the_runtime_matrix_has_a_row_for_each_place_and_for_what_is_not_present() -> None:
    cell = {**corner("logits"), "configuration": "CPU, batch 2", "door": "session", "status": "holds", "rows": 64}
    cell |= {"agreeing": 64, "ratio": 0.8, "rms_limit": 3e-6, "provider": "CPUExecutionProvider"}
    absent = {"configuration": "CUDA", "door": "session", "status": "not present", "sentence": "CUDA: not present: why"}
    invariance = {"configuration": "CPU, batch invariance", "status": "fails", "identical": False, "difference": 1e-3}
    invariance |= {"sizes": [1, 2, 7], "difference_ulp": 4e4, "limit": 1e-6, "sentence": "it differs"}
    page = parity_page(document(tier("T5", "fails", cell, absent, invariance), holds=False))
    said = text(page)
    for words in ("CPU, batch 2", "100%", "CUDA", "not present", "why", "it differs", "1, 2, 7"):
        assert words in said
    assert page.count('<tr class="fails">') == 1


def test_the_kill_table_counts_by_kind_and_names_what_survives() -> None:
    def mutant(kind: str, tensor: str, *by: str) -> dict[str, Any]:
        tiers = {name: {"caught": name in by, "said": ""} for name in ("T1", "T2", "T4")}
        row = {"network": "pool", "mutant": kind, "kind": kind, "move": "linear", "tensor": tensor}
        return {**row, "killed_by": list(by), "tiers": tiers}

    rows = [mutant("eps dropped", f"w{at}", "T1", "T2") for at in range(300)]
    rows += [mutant("one ulp", "w0", "T1"), mutant("<b>", "w1", "T4"), mutant("one ulp", "w2")]
    page = parity_page(document(tier("T6", "fails", *rows), holds=False))
    said = text(page)
    assert "pool, linear, w1: <b>T4" in said  # outputs that differ are no proof
    assert "pool, linear, w2: one ulpnone" in said
    assert page.count('<tr class="fails">') == 2
    assert "eps dropped300 of 300300 of 3000 of 300" in said
    assert "one ulp1 of 20 of 20 of 2" in said
    assert "all301 of 303300 of 3031 of 303" in said


def test_hard_inputs_stand_with_their_own_limits() -> None:
    row = {
        **corner("logits", 8e-7),
        "kind": "a chequerboard",
        "status": "fails",
        "rms_limit": 4.5e-7,
        "error_limit": 1e-6,
    }
    left = {**corner("logits"), "kind": "ten times the data", "status": "left out"}
    page = parity_page(document(tier("T3", "fails", corner("logits"), row, left), holds=False))
    said = text(page)
    assert "logits: a chequerboard" in said
    assert "4.50e-7" in said
    assert page.count('<tr class="fails">') == 2  # both of its errors


def test_norms_files_and_hashes_come_from_the_bundle() -> None:
    folder = Path(__file__).resolve().parents[2] / "models" / "digits-cnn" / "1"
    parity, fold, manifest = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("parity", "fold", "manifest")
    )
    fold["norms"][1] |= {"outcome": "kept", "reason": "OTHER_READER", "detail": "has another reader"}
    page = parity_page(parity, fold_report=fold, manifest=manifest, command="bnfold verify models/digits-cnn/1 --json")
    said = text(page)
    assert "has another reader OTHER_READER" in said
    assert manifest["files"]["model.onnx"] in said
    assert "bnfold verify models/digits-cnn/1 --json" in said
    bare = text(parity_page(parity))
    assert manifest["files"]["model.onnx"] not in bare
    assert "OTHER_READER" not in bare


def hostile(value: Any) -> Any:
    """The document with a hostile name in place of every text that is no verdict."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return f"{value}{HOSTILE}\x00\ud800" if isinstance(value, str) and value not in ("holds", "fails") else value


def test_hostile_names_stay_text() -> None:
    given = hostile(whole(holds=False))
    given["tiers"][1]["tier"] = given["name"]
    page = parity_page(given, fold_report=hostile({"norms": [{"name": "n", "outcome": "kept"}]}), command=HOSTILE)
    reader = read(page)
    assert "<script>document.title='owned'</script>" in reader.text  # as text
    assert "\u202e" not in page
    assert "\x00" not in page
    page.encode("utf-8")
    assert "default-src &#x27;none&#x27;" in page


@pytest.mark.parametrize("given", [{}, {"tiers": 3}, {"tiers": [1, None, []]}, {"tiers": [{}], "environment": [1]}])
def test_a_document_of_the_wrong_shape_has_a_page_that_does_not_hold(given: dict[str, Any]) -> None:
    page = parity_page(given)
    read(page)
    assert verdict(page)[0] == "cannot-tell"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**400, -(10**400), 5e-324, 1.7e308, "holds", "fails", HOSTILE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
ROWS = st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=12) | VALUES, max_size=4)
SUMMARIES = st.dictionaries(
    st.sampled_from(("margin_quantiles", "margin_above_difference", "smallest_margin", "largest_difference", "rows")),
    VALUES | st.dictionaries(st.sampled_from(("0", "0.5", "1", "nan")), VALUES),
)
TIERS = st.fixed_dictionaries(
    {"details": ROWS, "summary": SUMMARIES, "findings": VALUES, "tier": VALUES, "status": VALUES}
)


@settings(max_examples=300)
@given(st.lists(TIERS, max_size=2), VALUES, VALUES)
def test_no_document_breaks_the_page(tiers: list[Any], anything: Any, other: Any) -> None:
    given = {"tiers": tiers, "environment": anything, "notes": other, "name": other, "version": anything, "new": other}
    read(parity_page(given, fold_report={"norms": [anything, {"name": other, "numbers": anything}], "counts": other}))


def test_many_rows_of_an_unknown_kind_are_cut_but_for_the_bad_ones() -> None:
    rows = [{"mutant": f"m{at}", "killed": at % 50 != 0} for at in range(500)]
    page = parity_page(document(tier("T6", "fails", *rows), holds=False))
    assert all(f">m{at}<" in page for at in range(0, 500, 50))
    assert "478 more rows that hold" in text(page)


def test_the_document_is_not_changed() -> None:
    given = whole()
    before = copy.deepcopy(given)
    parity_page(given)
    assert given == before


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (21056, "21,056"), (0.0, "0"), (2.0, "2"), (0.4996, "0.5"), (7.97e-7, "7.97e-7"), (18331.2, "18,331"),
     (3.333e7, "3.33e7"), (math.inf, "not finite"), (10**400, "not finite"), (-1e-9, "-1.00e-9")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, written: str) -> None:
    assert figure(value) == written


def test_axes_are_whole_decades_around_their_values_and_clip_the_rest() -> None:
    axis = log_axis([0.003, 40.0, 0.0, None, math.nan, math.inf], 1.0)
    assert (axis.low, axis.high) == (1e-3, 100.0)
    assert axis.at(0.001) == 0
    assert math.isclose(axis.at(1.0), 60.0)
    assert (axis.at(0.0), axis.at(-1.0), axis.at(1e9), axis.at(None), axis.at(math.nan)) == (0, 0, 100, 100, 100)
    assert Axis(0.0, 0.6, 0.5, log=False).at(0.3) == 50
    assert log_axis([]).low < log_axis([]).high
    assert len(list(log_axis([1e-300, 1e300]).ticks())) <= 7


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("is_hostile", [False, True])
def test_a_browser_shows_the_page_and_stops_nothing(is_hostile: bool, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    given = hostile(whole()) if is_hostile else whole()
    page.write_text(parity_page(given), encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ran.stderr, ran.stderr  # no error, nothing that the policy had to stop
    title = re.search(r"<title>(.*?)</title>", ran.stdout, re.DOTALL)
    assert title is not None
    assert title[1].startswith("Parity of net")
