"""The JUnit document: its counts, its names, and what each verdict becomes, read back as a consumer would."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold.parity import ParityReport, TierResult, verify
from bnfold.parity.junit import to_junit

HOSTILE = "</testcase><failure/>\x00\x1b[31m\ud800\ufffe\u202e]]>&\"'\n\U0001f600"


def read(*tiers: TierResult, **options: Any) -> ElementTree.Element:
    return ElementTree.fromstring(to_junit(ParityReport("net", 3, tiers, **options)).encode("utf-8"))


def counts(element: ElementTree.Element) -> dict[str, int]:
    return {key: int(element.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}


def found(element: ElementTree.Element) -> dict[str, int]:
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    return {
        "tests": len(element.findall(".//testcase")),
        **{key: len(element.findall(f".//testcase/{tag}")) for key, tag in kinds.items()},
    }


def names(element: ElementTree.Element, tag: str = "") -> list[str]:
    wanted = element.iter("testcase")
    return [case.attrib["name"] for case in wanted if not tag or case.find(tag) is not None]


def tensor(name: str, wrong: int = 0, worst: float = 0.49) -> dict[str, Any]:
    return {
        "tensor": name, "role": "weight", "linear": "conv", "norms": ["bn"], "elements": 8, "not_nearest": wrong,
        "worst_ulp": worst, "worst_index": [1, 2], "worst_channel": 1,
    }  # fmt: skip


def test_a_bundle_that_holds_passes_with_a_case_for_every_tensor_site_and_output(pristine: Path) -> None:
    report = verify(pristine)
    document = ElementTree.fromstring(to_junit(report))
    assert counts(document) == found(document)
    assert (found(document)["failures"], found(document)["errors"]) == (0, 0)
    suites = document.findall("testsuite")
    assert [suite.attrib["name"].split()[0] for suite in suites] == [tier.tier for tier in report.tiers]
    for suite, tier in zip(suites, report.tiers, strict=True):
        assert counts(suite) == found(suite)
        assert len(suite.findall("testcase")) == 1 + len(tier.details)
    weights = suites[1]
    assert names(weights)[1:] == [row["tensor"] for row in report.tier("T1").details]


def test_names_are_the_same_from_run_to_run_and_every_one_is_its_own(pristine: Path) -> None:
    tiers = ("T0", "T1", "T2", "T3")
    first, second = (ElementTree.fromstring(to_junit(verify(pristine, tiers=tiers))) for _ in range(2))
    places = [(case.attrib["classname"], case.attrib["name"]) for case in first.iter("testcase")]
    assert len(set(places)) == len(places)
    assert places == [(case.attrib["classname"], case.attrib["name"]) for case in second.iter("testcase")]


def test_a_changed_weight_fails_its_tensor_and_its_site_and_no_other(folder: Path, mend: Any) -> None:
    model = onnx.load(folder / "model.onnx")
    changed = next(one for one in model.graph.initializer if one.name.endswith(".folded") and len(one.dims) == 4)
    values = numpy_helper.to_array(changed).copy()
    values[0] *= np.float32(1.01)
    changed.CopyFrom(numpy_helper.from_array(values, changed.name))
    onnx.save(model, folder / "model.onnx")
    mend(folder)
    report = verify(folder, tiers=("T0", "T1", "T2"))
    suites = {suite.attrib["name"].split()[0]: suite for suite in ElementTree.fromstring(to_junit(report))}
    assert names(suites["T1"], "failure") == ["verdict", changed.name]
    sites = [row["linear"] for row in report.tier("T2").details if row["bad"]]
    assert [name.partition(" (")[0] for name in names(suites["T2"], "failure")] == ["verdict", *sites]
    assert names(suites["T0"], "failure") == []
    failure = suites["T1"].find("testcase[2]/failure")
    assert failure is not None
    assert "are not the nearest to the exact fold" in str(failure.text)


def test_what_cannot_be_told_is_an_error_and_what_is_not_claimed_is_skipped() -> None:
    rows = (
        {"linear": "a", "norms": ["n"], "bad": 0, "problem": "no steps", "note": ""},
        {"linear": "b", "norms": ["n"], "bad": 0, "problem": "", "note": "measured, not bounded"},
        {"linear": "c", "norms": ["n"], "bad": 0, "problem": "", "note": ""},
    )
    document = read(TierResult("T2", "local bound", "cannot tell", "one is open", {}, ("why",), rows))
    assert names(document, "error") == ["verdict", "a (n)"]
    assert names(document, "skipped") == ["b (n)"]
    assert counts(document) == {"tests": 4, "failures": 0, "errors": 2, "skipped": 1}


@pytest.mark.parametrize("status", ["holds", "fails", "cannot tell"])
def test_a_suite_is_green_if_and_only_if_its_tier_holds(status: Any) -> None:
    rows = (tensor("a", wrong=3, worst=math.inf), {"output": "b", "doubt": "no truth"}, {"anything": {"at": [1]}})
    document = read(TierResult("T9", "of the future", status, "headline", {}, (), rows))
    found = counts(document)
    assert (found["failures"] + found["errors"] == 0) is (status == "holds")


def test_a_report_without_tiers_is_not_green() -> None:
    assert counts(read())["errors"] == 1


def test_hostile_names_stay_names() -> None:
    tier = TierResult(HOSTILE, HOSTILE, "fails", HOSTILE, {HOSTILE: HOSTILE}, (HOSTILE,), (tensor(HOSTILE, wrong=1),))
    document = ElementTree.fromstring(
        to_junit(ParityReport(HOSTILE, 1, (tier,), {HOSTILE: {HOSTILE: [HOSTILE]}}, (HOSTILE,))).encode("utf-8")
    )
    assert counts(document) == found(document) == {"tests": 2, "failures": 2, "errors": 0, "skipped": 0}
    assert {element.tag for element in document.iter()} == {
        "testsuites", "testsuite", "properties", "property", "testcase", "failure",
    }  # fmt: skip
    assert "\\x00\\x1b[31m\\ud800" in names(document)[1]
    assert names(document)[1].endswith("\U0001f600")


def test_rows_of_the_same_name_are_told_apart() -> None:
    tier = TierResult("T1", "t", "holds", "h", {}, (), (tensor("w"), tensor("w"), {"number": 1}))
    assert names(read(tier)) == ["verdict", "w", "w #2", "row 3"]


def test_times_are_those_of_the_tiers() -> None:
    tiers = (
        TierResult("T1", "t", "holds", "h", details=(tensor("w"),), seconds=1.5),
        TierResult("T2", "t", "holds", "h"),
    )
    document = read(*tiers)
    assert [suite.attrib["time"] for suite in document] == ["1.500", "0.000"]
    assert [case.attrib["time"] for case in document.iter("testcase")] == ["1.500", "0", "0.000"]
    assert document.attrib["time"] == "1.500"


def test_properties_tell_the_environment_and_the_numbers() -> None:
    tier = TierResult("T3", "t", "holds", "h", {"ratio": math.inf, "rows": 2})
    document = read(tier, environment={"python": "3.11", "threads": 1}, notes=("T4 was not run",))
    found = {one.attrib["name"]: one.attrib["value"] for one in document.iter("property")}
    assert found["environment.python"] == "3.11"
    assert found["environment.threads"] == "1"
    assert (found["summary.ratio"], found["summary.rows"]) == ("null", "2")
    assert found["note.0"] == "T4 was not run"
