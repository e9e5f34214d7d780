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


def test_an_npz_of_a_training_is_told_what_a_network_is_given(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.ones((3, 1, 4, 4)))
    with pytest.raises(DataError, match=r"expected one called 'image', as the input of the network, .* preprocessed"):
        load_samples(tmp_path / "d.npz", [SPEC])


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
        (
            {"image": np.ones((3, 1, 4, 4)), "labels": np.array([1, 2])},
            "3 samples of 'image' and 2 labels, .* same number",
        ),
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
    with pytest.raises(DataError, match=r"no \.npz file that can be read .*; write it again"):
        load_samples(tmp_path / "d.npz", [SPEC])


def test_says_that_a_file_or_folder_is_not_there(tmp_path: Path) -> None:
    for name in ("d.npz", "images"):
        with pytest.raises(DataError, match=f"{name} is not there; expected an .npz file or a folder of images"):
            load_samples(tmp_path / name, [SPEC])


@pytest.mark.parametrize(
    "content",
    [
        b"no array",
        b"\x93NUMPY\x01\x00\x10\x00{'descr':'<f4'  \n",
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'shape': (10**6,)}".ljust(117) + b"\n",
    ],
    ids=["no array", "a header cut short", "a header that computes"],
)
def test_says_which_archive_holds_no_array(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("image.npy", content)
    with pytest.raises(DataError, match=r"d\.npz"):
        load_samples(tmp_path / "d.npz", [SPEC])


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("float32", np.nan, "NaN"),
        ("float32", 1e39, "beyond the range of float32"),
        ("float16", 70000, "beyond the range of float16"),
        ("int64", 0.5, "no whole number"),
        ("uint8", 256, "beyond the range of uint8"),
        ("uint8", -1, "beyond the range of uint8"),
        ("int64", 2.0**63, "beyond the range of int64"),
        ("bool", 2, "beyond the range of bool"),
    ],
)
def test_changes_no_value_to_fit_the_dtype_of_an_input(dtype: str, values: float, message: str) -> None:
    spec = TensorSpec("image", dtype, (-1, 2))
    with pytest.raises(DataError, match=message):
        load_samples((np.full((3, 2), values), None), [spec])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "uint8", "int64", "bool"])
def test_takes_whole_numbers_of_any_dtype_for_an_input_of_any_dtype(dtype: str) -> None:
    samples = load_samples((np.array([[0.0, 1.0]]), None), [TensorSpec("image", dtype, (-1, 2))])
    assert samples.inputs["image"].dtype.name == dtype
    assert samples.inputs["image"].astype(int).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("data", "specs", "message"),
    [
        ((np.ones((2, 2)),), 1, "pair"),
        ({"a": np.ones((2, 2))}, 1, "pair"),
        ((np.ones((2, 2)), None), 2, "one input"),
        (([[1, 2], [3]], None), 1, "array"),
    ],
)
def test_says_what_arrays_in_memory_are_expected(data: object, specs: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_samples(data, [TensorSpec(name, "float32", (-1, 2)) for name in "ab"[:specs]])  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_is_a_class_that_there_is(label: int) -> None:
    data = (np.ones((2, 1, 4, 4)), np.array([0, label]))
    with pytest.raises(DataError, match=f"label {label}, expected"):
        load_samples(data, [SPEC], labels=["cat", "dog"])


def test_an_input_without_a_batch_cannot_be_given_samples() -> None:
    factor = TensorSpec("factor", "float32", ())
    with pytest.raises(DataError, match="'factor' is a single number"):
        load_samples((np.array(1.0), None), [factor])
    with pytest.raises(DataError, match="'factor' is a single number"):
        golden_inputs([SPEC, factor], None)


def test_golden_inputs_need_one_batch_size() -> None:
    pair = [TensorSpec("a", "float32", (5, 2)), TensorSpec("b", "float32", (7, 2))]
    with pytest.raises(DataError, match="5 and 7 rows"):
        golden_inputs(pair, None)
    with pytest.raises(DataError, match="no input"):
        golden_inputs([], None)


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
