"""The fixture `parity` and its report, in pytest runs of their own."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from bnfold import pytest_plugin

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parent.parent

TESTS = """
    import pytest
    from testing_networks import eps_dropped, fused, images, network

    def test_right(parity):
        assert parity(network(), fused(network()), images()).holds

    def test_named(parity):
        parity(network(1), fused(network(1)), images(), tiers=("T1", "T3"), name="the second seed")
"""
WRONG = """
    def test_wrong(parity):
        parity(network(), eps_dropped(network()), images())
"""


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs pytest with this plugin and no other."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))

    def run(text: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(text)
        return pytester.runpytest_subprocess("-p", "bnfold.pytest_plugin", *arguments)

    return run


def test_fixture_passes_right_folds_and_shows_what_is_wrong_with_others(runs):
    result = runs(TESTS + WRONG)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*parity(network(), eps_dropped(network()), images())*",
            "E*ParityFailure: the folded Network is not a right fold of Network (T1, T3)",
            "E*T1  weight certificate  fails*",
            "E*tensor 'conv.weight'*",
            "E*likely cause: the epsilon was*",
            "E*next: mend the fold*",
        ]
    )
    text = result.stdout.str()
    assert "asserting.py" not in text  # the test is shown, not the insides of the fixture
    assert "pytest_plugin.py" not in text
    assert "tensor(" not in text


def test_argument_that_does_not_fit_shows_the_test_and_one_sentence(runs):
    result = runs("""
        from testing_networks import fused, images, network

        def test_misspelt(parity):
            parity(network(), fused(network()), images(), tiers=("T9",))
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*parity(network()*", "E*tiers holds 'T9', expected*"])
    text = result.stdout.str()
    assert "asserting.py" not in text
    assert "def prove_parity" not in text


@pytest.mark.parametrize("ending", ["html", "json", "xml"])
def test_report_holds_every_proof_of_the_session(runs, pytester, ending: str):
    result = runs(TESTS + WRONG, f"--bnfold-report=reports/parity.{ending}")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines([f"bnfold: 3 proofs in reports/parity.{ending}"])
    text = (pytester.path / "reports" / f"parity.{ending}").read_text()
    assert "the second seed" in text
    assert "test_right" in text
    assert "the epsilon was dropped" in text
    if ending == "json":
        document = json.loads(text)
        assert document["holds"] is False
        assert len(document["tiers"]) == 8
    if ending == "xml":
        root = ElementTree.fromstring(text)
        failing = [suite.get("name") for suite in root if suite.get("failures") != "0"]
        assert len(failing) == 2
        assert all("test_wrong" in name for name in failing)
    if ending == "html":
        assert "Parity does not hold" in text


def test_no_report_without_the_option_or_without_a_proof(runs, pytester):
    runs(TESTS, "-k", "right").assert_outcomes(passed=1, deselected=1)
    result = runs("def test_other(): pass", "--bnfold-report=parity.xml")
    result.stdout.fnmatch_lines(["bnfold: no test used the fixture `parity`*"])
    assert not list(pytester.path.glob("*.xml"))


def test_report_of_an_unknown_kind_is_refused_before_any_test_runs(runs):
    result = runs(TESTS, "--bnfold-report=parity.pdf")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --bnfold-report is parity.pdf, expected a file ending in .html, .json, .xml"])


def test_report_in_place_of_a_folder_is_refused_before_any_test_runs(runs, pytester):
    pytester.mkdir("parity.html")
    result = runs(TESTS, "--bnfold-report=parity.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --bnfold-report is parity.html, a folder; expected the name of a file*"])


def test_plugin_that_is_not_used_imports_nothing_heavy(runs):
    heavy = "numpy", "onnx", "onnxruntime", "torch", "bnfold.testing", "bnfold.parity", "bnfold.folding"
    text = f"import sys\ndef test_it(): assert not [name for name in {heavy} if name in sys.modules]"
    runs(text).assert_outcomes(passed=1)


def test_entry_point_of_the_package_loads_the_plugin(pytester, monkeypatch):
    """As an installed package has it, with every other plugin that is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["pytest11"].items()
    folder = pytester.mkdir("installed") / "bnfold_plugin-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: bnfold-plugin\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(f"[pytest11]\n{name} = {value}\n")
    paths = [str(folder.parent), str(ROOT), str(ROOT / "tests")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    pytester.makepyfile("def test_it(parity): assert parity")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_workers_of_xdist_hand_their_proofs_on():
    worker = SimpleNamespace(stash={pytest_plugin._PROOFS: ["a"]}, workeroutput={})
    pytest_plugin.pytest_sessionfinish(SimpleNamespace(config=worker))
    controller = SimpleNamespace(stash={pytest_plugin._PROOFS: ["b"]})
    pytest_plugin.pytest_testnodedown(SimpleNamespace(config=controller, workeroutput=worker.workeroutput), None)
    pytest_plugin.pytest_testnodedown(SimpleNamespace(config=controller), None)  # one that crashed
    assert controller.stash[pytest_plugin._PROOFS] == ["b", "a"]
