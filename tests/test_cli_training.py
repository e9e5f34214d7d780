"""The commands on a network that is trained here: train, fold-and-export, verify, predict."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_networks import tree
from safetensors.numpy import load_file, save_file

from bnfold.cli import main

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "models" / "digits-mlp" / "recipe.toml"


def bnfold(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network after two epochs, trained by the command line."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    ran = bnfold("train", RECIPE, "--set", "train.epochs=2", "--device", "cpu", "-o", folder, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    document = json.loads(ran.stdout)
    assert Path(document["checkpoint"]) == folder
    assert document["metrics"]["epochs"] == 2
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, written by the command line."""
    ran = bnfold("fold-and-export", checkpoint, "-o", tmp_path_factory.mktemp("models") / "digits", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    document = json.loads(ran.stdout)
    assert document["fold"]["counts"]["folded"] == sum(document["fold"]["counts"].values()) > 0
    assert document["parity"]["holds"] is True
    return Path(document["bundle"])


def test_checkpoint_has_all_its_files(checkpoint):
    assert {path.name for path in checkpoint.iterdir()} == {
        "weights.safetensors",
        "checkpoint.json",
        "held_out.safetensors",
        "history.csv",
        "norms.csv",
        "curves.png",
        "readiness.html",
        "readiness.json",
    }


def test_inspect_of_a_checkpoint_lists_its_norms_and_writes_nothing(checkpoint, capsys):
    before = tree(checkpoint)
    assert main(["inspect", str(checkpoint)]) == 0
    out, err = capsys.readouterr()
    assert "norms found" in out
    assert err == ""
    assert tree(checkpoint) == before


def test_bundle_of_a_trained_network_holds_and_knows_its_digits(bundle, checkpoint):
    ran = bnfold("verify", bundle, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    tiers = {tier["tier"]: tier["summary"] for tier in json.loads(ran.stdout)["tiers"]}
    meta = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
    assert tiers["T1"]["worst_ulp"] <= 0.5
    assert tiers["T4"]["disagreements"] == 0
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["labels"] == [str(digit) for digit in range(10)]
    assert manifest["preprocessing"] == meta["preprocessing"]


def test_predict_reads_a_picture_with_the_preprocessing_of_the_training(bundle, tmp_path):
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    sample = digits.images[4]
    Image.fromarray(np.rint(sample * 255 / 16).astype(np.uint8)).save(tmp_path / "digit.png")
    np.save(tmp_path / "digit.npy", (sample / 16).astype(np.float32)[np.newaxis])
    rows = []
    for name in ("digit.png", "digit.npy"):
        ran = bnfold("predict", bundle.parent, tmp_path / name, "--json")
        assert (ran.returncode, ran.stderr) == (0, "")
        rows += json.loads(ran.stdout)["predictions"]
    assert rows[0]["class"] == rows[1]["class"]
    # A picture has 256 levels where the data set has 17: rounding moves a pixel by 1/510 at most.
    assert abs(rows[0]["probability"] - rows[1]["probability"]) < 0.05


@pytest.mark.parametrize(
    ("setting", "found"),
    [("train.epochs=many", "epochs"), ("train.nonsense=1", "nonsense"), ("epochs", "key=value")],
)
def test_train_with_a_wrong_setting_is_one_sentence_and_writes_nothing(tmp_path, capsys, setting, found):
    code = main(["train", str(RECIPE), "--set", setting, "-o", str(tmp_path / "checkpoint")])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert found in err.lower()
    assert not list(tmp_path.iterdir())


def test_train_says_what_was_reached_as_a_person_reads_it(checkpoint, capsys):
    words = ["train", str(RECIPE), "--set", "train.epochs=2", "--resume", str(checkpoint)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert re.search(r"\n  held out accuracy: \d+\.\d\d%\n  held out loss: [\d.]{1,7}\n", said)
    assert "\n  epochs: 2\n" in said
    counts = json.loads((checkpoint / "readiness.json").read_text())["counts"]
    assert f"\n  fold-readiness: {counts.get('ready', 0)} of {sum(counts.values())} norms ready" in said
    assert all(f"{word}: {count}" in said for word, count in counts.items() if word != "ready")
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["readiness"] == counts


def test_the_lines_of_python_in_the_docs_train_and_open_a_network(tmp_path):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "load_checkpoint" in block)
    (tmp_path / "models").symlink_to(ROOT / "models")
    code += "assert not network.training\n"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.match(r"epoch 1/2 .*\nepoch 2/2 .*\nruns/digits-mlp/1 0\.\d+\n", ran.stdout)


def test_train_without_a_recipe_is_one_sentence(tmp_path, capsys):
    assert main(["train", str(tmp_path / "nothing.toml"), "-o", str(tmp_path / "checkpoint")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "nothing.toml" in err


def test_train_does_not_write_over_a_folder(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    before = tree(tmp_path)
    assert main(["train", str(RECIPE), "--set", "train.epochs=1", "-o", str(tmp_path / "mine")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert tree(tmp_path) == before


def test_checkpoint_with_a_missing_tensor_is_one_sentence_that_names_it(checkpoint, tmp_path, capsys):
    broken = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, broken)
    tensors = load_file(broken / "weights.safetensors")
    missing = sorted(name for name in tensors if name.endswith("running_var"))[0]
    del tensors[missing]
    save_file(tensors, broken / "weights.safetensors")
    for command in (["inspect"], ["fold-and-export", "-o", str(tmp_path / "models" / "x")]):
        code = main([*command, str(broken)])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert missing in err
        assert "unexpected error" not in err
    assert not (tmp_path / "models").exists()


def test_nan_variance_in_a_checkpoint_is_a_row_of_inspect_and_stops_fold_and_export(checkpoint, tmp_path, capsys):
    broken = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, broken)
    tensors = load_file(broken / "weights.safetensors")
    name = sorted(name for name in tensors if name.endswith("running_var"))[0]
    tensors[name][0] = np.nan
    save_file(tensors, broken / "weights.safetensors")
    assert main(["inspect", str(broken)]) == 0
    assert "refused" in capsys.readouterr().out
    code = main(["fold-and-export", str(broken), "-o", str(tmp_path / "models" / "x")])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert name.removesuffix(".running_var") in err
    assert not (tmp_path / "models").exists()
