"""The unfolded original back out of a bundle, or one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_networks import mend, save_network, tree
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from bnfold.build import build_bundle
from bnfold.bundle import load_bundle, sidecar
from bnfold.cli import main
from bnfold.errors import BundleError
from bnfold.unfold import unfold


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfold")
    return build_bundle(save_network(folder / "small.onnx"), folder / "models/small").path


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "small" / "1"))


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_gives_the_reference_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    made = unfold(folder, tmp_path / "original.onnx")
    assert made.path.read_bytes() == (folder / "reference.onnx").read_bytes()
    assert (made.tensors, made.norms, made.replaced) == (6, 1, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original.onnx", "small"]


def test_the_original_has_every_tensor_of_the_source(folder: Path, tmp_path: Path) -> None:
    save_network(tmp_path / "source.onnx")
    unfold(folder, tmp_path / "back.onnx")
    source, back = tensors(tmp_path / "source.onnx"), tensors(tmp_path / "back.onnx")
    assert source.keys() == back.keys()
    assert all(source[name].tobytes() == back[name].tobytes() for name in source)


def change_tensor(folder: Path) -> None:
    model = onnx.load(folder / "reference.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[0] = np.nextafter(values.reshape(-1)[0], np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(values, "weight"))
    onnx.save(model, folder / "reference.onnx")


def drop_tensor(folder: Path) -> None:
    model = onnx.load(folder / "reference.onnx")
    model.graph.node[-1].input[1] = "weight2"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
    tensor.name = "weight2"
    onnx.save(model, folder / "reference.onnx")


def change_statistics(folder: Path) -> None:
    path = folder / "statistics.safetensors"
    stored = dict(load_file(path))
    key = next(name for name in stored if name.endswith(".mean"))
    stored[key] = np.nextafter(stored[key], np.float32(9))
    save_file(stored, path)


def rename_statistics(folder: Path) -> None:
    path = folder / "statistics.safetensors"
    save_file({f"other.{name.rpartition('.')[2]}": array for name, array in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (change_tensor, "has in 'weight' a tensor with sha256"),
        (drop_tensor, "has no tensor 'head'"),
        (change_statistics, "another mean than statistics.safetensors"),
        (rename_statistics, "has no norm 'other'"),
    ],
)
def test_what_is_not_the_original_is_one_sentence_and_nothing_is_written(
    harm: Callable[[Path], None], found: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(folder)
    with pytest.raises(BundleError, match="expected"):  # the hash of the file
        unfold(folder, tmp_path / "x.onnx")
    mend(folder)
    before = tree(tmp_path)
    assert main(["unfold", str(folder), "-o", str(tmp_path / "x.onnx")]) == 2
    err = capsys.readouterr().err
    assert found in err
    assert len(err.splitlines()) == 1
    assert tree(tmp_path) == before


def test_the_parameters_of_the_fold_map_count_too(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    next(item for item in document["parameters"] if item["name"] == "head")["sha256"] = "0" * 64
    mend(folder, parameters=document["parameters"])
    with pytest.raises(BundleError, match="of the parameters of the manifest"):
        unfold(folder, tmp_path / "x.onnx")


def test_a_tensor_that_the_manifest_does_not_know_is_refused(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    del document["source_tensors"]["head"]
    mend(folder, source_tensors=document["source_tensors"])
    with pytest.raises(BundleError, match="a tensor 'head', which is not among"):
        unfold(folder, tmp_path / "x.onnx")


def test_a_file_that_exists_is_only_replaced_when_asked_and_that_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "x.onnx"
    target.write_text("precious")
    assert main(["unfold", str(folder), "-o", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert main(["unfold", str(folder.parent), "-o", str(target), "--overwrite", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "replaced" in err
    assert json.loads(out)["replaced"] is True
    assert target.read_bytes() == (folder / "reference.onnx").read_bytes()


@pytest.mark.parametrize(
    ("name", "found"), [("x.bin", "ends with .onnx"), ("no/x.onnx", "no folder"), (".onnx", "ends")]
)
def test_a_destination_that_cannot_be_is_one_sentence(name: str, found: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=found):
        unfold(folder, tmp_path / name)


def test_a_large_model_comes_back_with_its_data_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "INLINE_BYTES", 100)
    monkeypatch.setattr(sidecar, "_SMALL", 16)
    monkeypatch.setattr("bnfold.unfold._SMALL", 16)
    path = build_bundle(save_network(tmp_path / "source.onnx"), tmp_path / "models/large").path
    assert (path / "model.onnx.data").exists()
    made = unfold(path, tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx.data").exists()
    source, back = tensors(tmp_path / "source.onnx"), tensors(made.path)
    assert source.keys() == back.keys()
    assert all(source[name].tobytes() == back[name].tobytes() for name in source)
    onnx.checker.check_model(str(made.path))
    with pytest.raises(BundleError, match="exists already"):
        unfold(path, tmp_path / "back.onnx")


def test_the_map_of_an_onnx_file_has_every_tensor(folder: Path) -> None:
    manifest = load_bundle(folder).manifest
    fates = {item.name: item.fate for item in manifest.parameters}
    assert fates == {
        "weight": "folded", "gamma": "folded", "beta": "folded", "mean": "folded", "variance": "folded",
        "head": "unchanged",
    }  # fmt: skip
    names = tensors(folder / "model.onnx").keys()
    assert all(set(item.into) <= names for item in manifest.parameters)
