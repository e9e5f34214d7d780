"""`bnfold verify`: tiers by name, budget, page, JUnit, a server, and the suite's own test."""

from __future__ import annotations

import html
import json
import shutil
import socket
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

import bnfold
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
    assert out.splitlines()[-1] == "T1 holds; T0, T2, T3, T3b not run, so parity is not proven by this run"


def test_tiers_may_be_spelt_in_small_letters(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "verify", BUNDLE, "--tier", "t1, T3B", "--json")
    assert code == 0
    assert [tier["tier"] for tier in json.loads(out)["tiers"]] == ["T1", "T3b"]


@pytest.mark.parametrize(
    ("text", "found"), [("T9", "tier 'T9' is not known"), ("", "no tier was named"), (",", "no tier")]
)
def test_no_tier_or_one_that_is_unknown_ends_in_the_list_of_them(
    text: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "verify", BUNDLE, "--tier", text)
    assert (code, out) == (2, "")
    assert found in err
    assert "T0, T1, T2, T3, T3h, T3b, T4, T5, T6" in err


@pytest.mark.parametrize(
    "words", [("--tier", "T1,T4", "--url", "http://127.0.0.1:1"), ("--tier", "T1", "--data", "there/is/none.npz")]
)
def test_what_no_chosen_tier_would_look_at_is_refused(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "verify", BUNDLE, *words)
    assert (code, out) == (2, "")
    assert f"leave {words[2].strip('-')} out" in err


@pytest.mark.parametrize(
    "words",
    [
        ("--tier", "T1"),
        ("--html", "p.html"),
        ("--junit", "p.xml"),
        ("--data", "d.npz"),
        ("--url", "u"),
        ("--seconds", "9"),
    ],
)
def test_the_self_test_refuses_what_it_would_not_do(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "verify", "--self-test", *words)
    assert (code, out) == (2, "")
    assert f"--self-test was given {words[0]}, which it does not know" in err


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
        document = json.loads(out)
        summaries.append(document["tiers"][0]["summary"])
        assert ["a budget of 0.001 s" in note for note in document["notes"]] == [True] * bool(words)
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


def test_the_page_tells_when_by_what_and_with_which_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, data = tmp_path / "proof.html", tmp_path / "my samples.npz"
    np.savez(data, x=np.ones((3, 1, 8, 8), np.float32))
    before = datetime.now(UTC).replace(microsecond=0)
    words = ("--tier", "t4", "--data", data, "--seconds", "90", "--html", page, "--json")
    _, out, _ = call(capsys, "verify", BUNDLE, *words)
    environment = json.loads(out)["environment"]
    assert before <= datetime.fromisoformat(environment["date"]) <= datetime.now(UTC)
    assert environment["bnfold"] == bnfold.__version__
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert environment["date"] in text
    assert "bnfold verify digits-cnn/1 --tier t4 --data 'my samples.npz' --seconds 90" in text
    assert str(tmp_path) not in text


def test_a_report_under_a_strange_name_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--html", "--junit"):
        code, _, err = call(capsys, "verify", BUNDLE, flag, tmp_path / "report.txt")
        assert code == 2
        assert len(err.splitlines()) == 1
        assert "give it that ending" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["no/such/folder/report", "folder"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("the tiers ran first")

    monkeypatch.setattr("bnfold.parity.verification.examine", run)
    for flag, ending in (("--html", ".html"), ("--junit", ".xml")):
        (tmp_path / f"folder{ending}").mkdir()
        code, out, err = call(capsys, "verify", BUNDLE, flag, tmp_path / f"{place}{ending}")
        assert (code, out) == (2, "")
        assert "cannot be written (No such file or directory)" in err or "is a folder; expected the name" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "folder.xml"]


def test_a_bundle_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "verify")
    assert code == 2
    assert "verify was given no bundle" in err


def test_a_model_cut_off_is_named_as_a_changed_file_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(BUNDLE, tmp_path / "digits-cnn" / "1")
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:40_000])
    code, out, err = call(capsys, "verify", folder)
    assert (code, out) == (2, "")
    assert err.startswith(f"bnfold: {model} has sha256 ")
    assert "take the bundle anew from where it was built" in err
    assert "as it stands it cannot be read" in err


def test_a_server_that_is_not_there_leaves_it_open(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, out, _ = call(capsys, "verify", BUNDLE, "--tier", "T5", "--url", f"http://127.0.0.1:{port}")
    assert code == 2
    assert "check that a server runs there" in " ".join(out.split())


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://127.0.0.1", "", "http://127.0.0.1:99999", "http://me:secret@here"]
)
def test_what_is_no_address_is_refused_before_anything_runs(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "verify", BUNDLE, "--url", url)
    assert (code, out) == (2, "")
    assert "is no address of a server; expected one like http://127.0.0.1:8000" in err
    assert "secret" not in err


@pytest.mark.parametrize("path", ["", "/", "/models/digits-cnn", "/models/digits-cnn/"])
def test_the_address_of_a_server_may_name_the_model(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}{path}"
            code, _, _ = call(capsys, "verify", BUNDLE, "--tier", "T5", "--url", url)
        finally:
            server.shutdown()
            thread.join()
    assert code == 2
    assert asked == ["/v2/models/digits-cnn/versions/1"]


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
