"""Samples given by a person, and the inputs of golden vectors."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bnfold.bundle.manifest import TensorSpec
from bnfold.errors import DataError
from bnfold.preprocessing import Preprocessing
from bnfold.probes import golden_inputs
from bnfold.samples import load_samples

SPEC = TensorSpec("image", "float32", (-1, 1, 4, 4))
GREY = Preprocessing(mode="L", height=4, width=4, scale=1 / 255, mean=(0.0,), std=(1.0,))


def test_reads_an_npz_by_input_name_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.ones((3, 1, 4, 4)), labels=np.array([0, 1, 2]))
    samples = load_samples(tmp_path / "d.npz", [SPEC])
    assert samples.inputs["image"].dtype == np.float32
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2]


def test_reads_an_npz_that_calls_its_only_input_x(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 1, 4, 4)))
    samples = load_samples(tmp_path / "d.npz", [SPEC])
    assert len(samples) == 3
    assert samples.labels is None


def test_refuses_pickled_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="without pickled objects"):
        load_samples(tmp_path / "d.npz", [SPEC])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.ones((3, 1, 4, 5))}, r"expected \[N, 1, 4, 4\]"),
        ({"other": np.ones((3, 1, 4, 4))}, "one called 'image'"),
        ({"image": np.ones((3, 1, 4, 4)), "labels": np.array([1, 2])}, "same number"),
        ({"image": np.ones((3, 1, 4, 4)), "labels": np.array([0.5, 1, 2])}, "expected integers"),
        ({"image": np.ones((0, 1, 4, 4))}, "have shape"),
    ],
)
def test_says_what_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_samples(tmp_path / "d.npz", [SPEC])


def test_refuses_a_text_file_called_npz(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_text("no archive")
    with pytest.raises(DataError, match="cannot be read"):
        load_samples(tmp_path / "d.npz", [SPEC])


def test_refuses_an_archive_that_declares_more_than_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.samples.MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", bytes(100_000))
    with pytest.raises(DataError, match="unpacks to"):
        load_samples(tmp_path / "d.npz", [SPEC])


def test_reads_a_folder_of_images_by_class(tmp_path: Path) -> None:
    for name, shade in (("cat", 255), ("dog", 0)):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), shade).save(tmp_path / name / "1.png")
    samples = load_samples(tmp_path, [SPEC], preprocessing=GREY, labels=("dog", "cat"))
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0]
    assert samples.inputs["image"][:, 0, 0, 0].tolist() == [1.0, 0.0]


def test_names_the_image_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(DataError, match=r"bad\.png"):
        load_samples(tmp_path, [SPEC], preprocessing=GREY)


def test_golden_inputs_hold_the_samples_and_hard_ones() -> None:
    data = np.random.default_rng(0).random((7, 1, 4, 4)).astype(np.float32)
    first, second = golden_inputs([SPEC], load_samples((data, np.arange(7)), [SPEC]))
    assert (first.inputs["image"] == data).all()
    assert first.labels is not None
    assert first.labels.tolist() == list(range(7))
    hard = second.inputs["image"]
    assert np.isfinite(hard).all()
    assert (hard[0] == 0).all(), "zeros"
    assert (hard == data.max()).any(), "saturated"
    assert ((hard != 0) & (np.abs(hard) < np.finfo(np.float32).tiny)).any(), "subnormal"


def test_golden_inputs_come_in_batches_of_a_fixed_size() -> None:
    spec = TensorSpec("image", "float32", (3, 1, 4, 4))
    data = np.random.default_rng(0).random((7, 1, 4, 4)).astype(np.float32)
    batches = golden_inputs([spec], load_samples((data, np.arange(7)), [spec]))
    assert {batch.inputs["image"].shape for batch in batches} == {(3, 1, 4, 4)}
    assert batches[2].labels is not None
    assert batches[2].labels.tolist() == [6, 0, 1]


def test_golden_inputs_for_integers_need_samples() -> None:
    with pytest.raises(DataError, match="--data"):
        golden_inputs([TensorSpec("ids", "int64", (-1, 5))], None)
