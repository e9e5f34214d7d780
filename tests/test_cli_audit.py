"""`bnfold audit` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnfold.cli import main

AUDITED = Path(__file__).parent / "parity" / "audited"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_right_fold_gives_exit_code_0_and_a_line_for_each_tier(capsys):
    code, out, err = call(
        capsys, "audit", AUDITED / "classifier.onnxslim.onnx", "--against", AUDITED / "classifier.onnx"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "audit of classifier.onnxslim against classifier"
    assert [line.split()[0] for line in lines if line.startswith("T")] == ["T1", "T3", "T4"]
    assert lines[-1] == "FOLDED is ORIGINAL, folded: consistent with rounding"


def test_wrong_fold_gives_exit_code_1_and_names_the_tensor_and_the_cause(capsys):
    code, out, _ = call(
        capsys, "audit", AUDITED / "scaled_width.onnxslim.onnx", "--against", AUDITED / "scaled_width.onnx"
    )
    assert code == 1
    text = " ".join(out.split())
    assert "mul_1_weight" in text
    assert "runs over axis 3, the channels of Conv 'conv' over axis 1" in text
    assert out.splitlines()[-1].startswith("FOLDED is not a right fold of ORIGINAL (T1, T3")


def test_json_is_one_document(capsys):
    code, out, err = call(
        capsys, "audit", AUDITED / "dense.onnxscript.onnx", "--against", AUDITED / "dense.onnx", "--json"
    )
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["holds"] is True
    assert {tier["tier"] for tier in document["tiers"]} == {"T1", "T3", "T4"}


@pytest.mark.parametrize("name", ["nothing.onnx", "nothing.txt"])
def test_file_that_is_not_there_gives_one_sentence(name: str, capsys, tmp_path: Path):
    for folded, against in ((tmp_path / name, AUDITED / "dense.onnx"), (AUDITED / "dense.onnx", tmp_path / name)):
        code, out, err = call(capsys, "audit", folded, "--against", against)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert "is not there" in err


def test_folded_network_of_nan_does_not_make_the_original_one_nan(capsys, tmp_path: Path):
    model = onnx.load(AUDITED / "dense.onnxslim.onnx")
    tensor = next(each for each in model.graph.initializer if len(each.dims) == 1)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")
    code, out, _ = call(capsys, "audit", tmp_path / "nan.onnx", "--against", AUDITED / "dense.onnx")
    text = " ".join(out.split())
    assert code == 1
    assert "is not measured" in text
    assert "values are NaN or infinite in one model and not so in the other" in text
    assert "ORIGINAL nan" not in text


def test_folder_of_images_is_refused_with_what_can_be_done(capsys, tmp_path: Path):
    files = ("--data", tmp_path, "--against", AUDITED / "dense.onnx")
    code, out, err = call(capsys, "audit", AUDITED / "dense.onnxslim.onnx", *files)
    assert (code, out) == (2, "")
    assert "give an .npz file" in err


@pytest.mark.parametrize("words", [("--weights", "w.pth"), ("--input-shape", "3,8,8")])
def test_what_only_a_factory_takes_is_refused_beside_a_file(words: tuple[str, str], capsys):
    files = (AUDITED / "dense.onnxslim.onnx", "--against", AUDITED / "dense.onnx")
    code, out, err = call(capsys, "audit", *files, *words)
    assert (code, out) == (2, "")
    assert "with a source of the form module:factory" in err


def test_swapped_files_give_one_sentence(capsys):
    code, _, err = call(capsys, "audit", AUDITED / "classifier.onnx", "--against", AUDITED / "classifier.onnxslim.onnx")
    assert code == 2
    assert "swapped" in err
    assert len(err.splitlines()) == 1


def test_needs_no_torch():
    program = (
        "import sys\n"
        "for name in ('torch', 'onnxscript', 'sklearn'):\n    sys.modules[name] = None\n"
        "from bnfold.cli import main\n"
        "sys.exit(main(['audit', 'dense.onnxscript.onnx', '--against', 'dense.onnx']))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=AUDITED, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "consistent with rounding" in ran.stdout
