"""`bnfold verify`: tiers by name, budget, page, JUnit, a server, and the suite's own test."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from bnfold.cli import main
from bnfold.parity.schema import load_schema

BUNDLE = Path(__file__).resolve().parent.parent / "models" / "digits-cnn" / "1"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_tiers_are_named_with_commas_or_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--tier", "T1,T0"), ("--tier", "T0", "--tier", "T1")):
        code, out, _ = call(capsys, "verify", BUNDLE, *words, "--json")
        assert code == 0
        assert [tier["tier"] for tier in json.loads(out)["tiers"]] == ["T0", "T1"]


def test_a_run_of_some_tiers_does_not_say_that_parity_holds(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "verify", BUNDLE, "--tier", "T1")
    assert out.splitlines()[-1] == "T1 hold; T0, T2, T3, T3b not run, so parity is not proven by this run"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_a_budget_that_is_no_time_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(BUNDLE), "--seconds", text])
    assert ended.value.code == 2
    assert "expected a number of seconds" in capsys.readouterr().err


def test_a_spent_budget_still_looks_at_every_site(capsys: pytest.CaptureFixture[str]) -> None:
    summaries = []
    for words in ((), ("--seconds", "0.001")):
        code, out, _ = call(capsys, "verify", BUNDLE, "--tier", "T2", "--json", *words)
        assert code == 0
        summaries.append(json.loads(out)["tiers"][0]["summary"])
    full, short = summaries
    assert short["sites"] == full["sites"] == 3
    assert 0 < short["rows"] < full["rows"]


def test_page_and_junit_are_written_beside_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, junit = tmp_path / "proof.html", tmp_path / "proof.xml"
    words = ("verify", BUNDLE, "--tier", "T0,T1,T2,T3,T3b,T4")
    code, out, _ = call(capsys, *words, "--html", page, "--junit", junit)
    assert code == 0
    assert out.splitlines()[-1].startswith("parity holds")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "Parity holds" in text
    assert "features.3.weight.folded" in text
    suites = ElementTree.parse(junit).getroot()
    assert suites.get("failures") == "0"
    assert len(suites) == 6


def test_a_report_under_a_strange_name_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--html", "--junit"):
        code, _, err = call(capsys, "verify", BUNDLE, flag, tmp_path / "report.txt")
        assert code == 2
        assert len(err.splitlines()) == 1
        assert "give it that ending" in err
    assert not list(tmp_path.iterdir())


def test_a_bundle_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "verify")
    assert code == 2
    assert "verify was given no bundle" in err


def test_a_server_that_is_not_there_leaves_it_open(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, out, _ = call(capsys, "verify", BUNDLE, "--tier", "T5", "--url", f"http://127.0.0.1:{port}")
    assert code == 2
    assert "check that a server runs there" in " ".join(out.split())


def test_mutants_of_a_bundle_are_all_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "verify", BUNDLE, "--self-test", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["holds"] is True
    assert found["survivors"] == []
    assert found["mutants"] > 40
    assert found["tiers"]["T1"]["caught"] == found["mutants"]
    assert found["tiers"]["T4"]["caught"] < found["mutants"]


def test_a_wrong_channel_is_named_by_tensor_channel_and_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(BUNDLE, tmp_path / "digits-cnn" / "1")
    model = onnx.load(folder / "model.onnx")
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "features.3.weight.folded"]
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[7] *= np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, folder / "model.onnx")
    code, out, _ = call(capsys, "verify", folder, "--tier", "T1,T2", "--json")
    assert code == 1
    tiers = {tier["tier"]: tier for tier in json.loads(out)["tiers"]}
    (row,) = [row for row in tiers["T1"]["details"] if row["not_nearest"]]
    assert row["tensor"] == "features.3.weight.folded"
    assert row["bad_channels"] == [7]
    (site,) = [site for site in tiers["T2"]["details"] if site["bad"]]
    assert site["bad_channels"] == [7]
    assert "channel 7" in tiers["T2"]["findings"][0]


def test_the_document_is_that_of_the_published_schema(capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    _, out, _ = call(capsys, "verify", BUNDLE, "--json")
    jsonschema.validate(json.loads(out), load_schema())
