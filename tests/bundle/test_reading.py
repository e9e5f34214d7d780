from __future__ import annotations

import json
import os
import pickle  # noqa: TID251  one is put in the folder, to see it refused
from pathlib import Path
from typing import Any

import onnx
import pytest
from bundle_drafts import make_draft, make_model, mend, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.bundle import inspect_bundle, load_bundle
from bnfold.bundle.tensorfile import dump_tensors, load_tensors
from bnfold.errors import BundleError

FILES = [
    "fold.json",
    "golden/test_data_set_0/input_0.pb",
    "golden/test_data_set_1/output_0.pb",
    "golden/truth.safetensors",
    "model.onnx",
    "parity.json",
    "reference.onnx",
    "statistics.safetensors",
]


def refused(folder: Path) -> str:
    """The sentence with which both ways of loading refuse a folder."""
    with pytest.raises(BundleError) as inspected:
        inspect_bundle(folder)
    with pytest.raises(BundleError) as loaded:
        load_bundle(folder)
    assert str(loaded.value) == str(inspected.value)
    assert "\n" not in str(loaded.value)
    assert "expected" in str(loaded.value)
    return str(loaded.value)


# Bytes that changed


@settings(max_examples=300, deadline=None)
@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_any_byte_of_any_hashed_file_is_guarded(pristine: Path, file: str, place: float, mask: int) -> None:
    path = pristine / file
    data = path.read_bytes()
    broken = bytearray(data)
    broken[int(place * len(data))] ^= mask
    try:
        path.write_bytes(broken)
        with pytest.raises(BundleError, match=f"{path} has sha256"):
            load_bundle(pristine)
        try:
            _, problems = inspect_bundle(pristine)
        except BundleError as fault:  # no longer of its kind, and the changed hash is named all the same
            problems = (str(fault),)
        assert len(problems) == 1
        assert f"{path} has sha256" in problems[0]
    finally:
        path.write_bytes(data)
    assert load_bundle(pristine).path == pristine


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_a_changed_manifest_is_read_or_refused_and_no_more(pristine: Path, place: float, mask: int) -> None:
    path = pristine / "manifest.json"
    data = path.read_bytes()
    broken = bytearray(data)
    broken[int(place * len(data))] ^= mask
    try:
        path.write_bytes(broken)
        try:
            changed = load_bundle(pristine).manifest
        except BundleError as fault:
            assert "\n" not in str(fault)  # noqa: PT017  either outcome is right
        else:
            # Only what nothing in the bundle can gainsay gets through: the manifest has no hash of its own.
            true = json.loads(data)
            assert changed.files == true["files"]
            assert [spec.to_dict() for spec in (*changed.inputs, *changed.outputs)] == true["inputs"] + true["outputs"]
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", ["cut", "longer", "empty"])
def test_refuses_a_file_of_another_length(file: str, change: str, folder: Path) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes({"cut": data[:-1], "longer": data + b"\0", "empty": b""}[change])
    with pytest.raises(BundleError, match="has sha256"):
        load_bundle(folder)


def test_inspection_goes_on_past_a_changed_hash(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "reference.onnx").read_bytes())
    bundle, problems = inspect_bundle(folder)
    assert len(problems) == 1
    assert "model.onnx has sha256" in problems[0]
    assert bundle.read("model.onnx") == bundle.read("reference.onnx")


def test_inspection_of_a_sound_bundle_finds_nothing(folder: Path) -> None:
    assert inspect_bundle(folder)[1] == ()


def test_a_mended_hash_is_left_to_the_proof(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "reference.onnx").read_bytes())
    mend(folder)
    load_bundle(folder)


def test_a_file_that_changes_after_loading_is_not_given_out(folder: Path) -> None:
    bundle = load_bundle(folder)
    bundle.read("model.onnx")
    (folder / "model.onnx").write_bytes((folder / "reference.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"model\.onnx changed while it was in use"):
        bundle.session_source()
    (folder / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx cannot be read \(No such file"):
        bundle.read("model.onnx")
    with pytest.raises(BundleError, match=r"has no file '\.\./secret'"):
        bundle.read("../secret")


def test_a_link_put_there_after_loading_is_not_followed(folder: Path) -> None:
    bundle = load_bundle(folder)
    moved = folder.parent / "moved"
    bundle.model_path.rename(moved)
    bundle.model_path.symlink_to(moved)
    with pytest.raises(BundleError, match=r"model\.onnx cannot be read"):
        bundle.read("model.onnx")


# Folders


def test_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "none cannot be read (No such file" in refused(tmp_path / "none")


def test_refuses_a_folder_without_a_manifest(tmp_path: Path) -> None:
    assert "has no manifest.json" in refused(tmp_path)


def test_refuses_a_file_in_place_of_the_folder(folder: Path) -> None:
    assert "is no folder" in refused(folder / "model.onnx")


def test_refuses_a_link_to_a_bundle(folder: Path) -> None:
    (folder.parent / "2").symlink_to(folder)
    assert "2 is a link" in refused(folder.parent / "2")


@pytest.mark.parametrize("file", [*FILES, "golden", "golden/test_data_set_0"])
def test_refuses_a_link_even_to_the_right_thing(file: str, folder: Path) -> None:
    moved = folder.parent / "moved"
    (folder / file).rename(moved)
    (folder / file).symlink_to(moved)
    assert f"has the link '{file}'" in refused(folder)


def test_refuses_a_link_in_place_of_the_manifest(folder: Path) -> None:
    moved = folder.parent / "moved"
    (folder / "manifest.json").rename(moved)
    (folder / "manifest.json").symlink_to(moved)
    assert "manifest.json" in refused(folder)


@pytest.mark.parametrize("file", FILES)
def test_refuses_a_bundle_with_a_file_missing(file: str, folder: Path) -> None:
    (folder / file).unlink()
    assert f"has no {file}, which its manifest lists" in refused(folder)


@pytest.mark.parametrize("file", ["model.pkl", ".DS_Store", "golden/extra.pb", "golden/test_data_set_0/input_1.pb"])
def test_refuses_a_file_that_the_manifest_does_not_list(file: str, folder: Path) -> None:
    (folder / file).write_bytes(pickle.dumps(print))
    assert f"has '{file}', which its manifest does not list" in refused(folder)


@pytest.mark.parametrize("name", ["more", "golden/test_data_set_2", "golden/test_data_set_0/deep"])
def test_refuses_a_folder_that_the_manifest_does_not_know(name: str, folder: Path) -> None:
    (folder / name).mkdir()
    assert f"has '{name}', which its manifest does not list" in refused(folder)


def test_refuses_a_name_that_is_no_text(folder: Path) -> None:
    with open(os.fsencode(folder) + b"/\xff.bin", "wb"):
        pass
    assert r"'\udcff.bin'" in refused(folder)


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
def test_a_pipe_in_place_of_a_file_is_refused_and_does_not_hang(file: str, folder: Path) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert f"{file} is no plain file" in refused(folder)


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "fold.json").unlink()
    (folder / "fold.json").mkdir()
    assert "has 'fold.json'" in refused(folder)


# Manifests


@pytest.mark.parametrize(
    "path",
    ["../secret", "/etc/passwd", "golden/../model.onnx", "golden//truth.safetensors", "model.pkl", "manifest.json",
     "golden/test_data_set_00/input_0.pb", "golden/test_data_set_0/input_0.pb\n", "reference.onnx.data", ""],
)  # fmt: skip
def test_refuses_a_manifest_that_lists_a_path_outside_the_schema(path: str, folder: Path) -> None:
    change_manifest(folder, lambda document: document["files"].update({path: "0" * 64}))
    sentence = refused(folder)
    assert "outside the schema" in sentence or "names with sha256" in sentence


PARAMETER = {"name": "w", "sha256": "0" * 64, "fate": "folded", "into": ["w.folded"], "reason": ""}


def change_manifest(folder: Path, change: Any) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", 2), ("schema_version", 1.0), ("schema_version", True), ("schema_version", None),
        ("name", "../x"), ("name", ""), ("name", "a/b"), ("name", ".."), ("name", 3),
        ("version", 0), ("version", "1"), ("version", True), ("version", 10**9),
        ("source", {}), ("source", {"kind": 1}), ("source", []), ("source", {"kind": "onnx", "file": "/a"}),
        ("inputs", []), ("inputs", {}), ("inputs", ["input"]), ("inputs", None),
        ("outputs", []), ("output_kind", "scores"), ("output_kind", ["logits"]),
        ("labels", "abc"), ("labels", ["a", "b"]), ("labels", ["a", "b", 3]), ("labels", ["a", "b", "\x1b[2J"]),
        ("preprocessing", {}), ("preprocessing", {"mode": "L"}), ("preprocessing", 1),
        ("fold_map", {}), ("fold_map", ["x"]),
        ("source_tensors", {"w": "A" * 64}), ("source_tensors", {"w": "0" * 63}), ("source_tensors", {"": "0" * 64}),
        ("tool_versions", {"bnfold": 1}), ("tool_versions", None),
        ("files", {}), ("files", []), ("files", {"model.onnx": None}),
        ("created", "yesterday"), ("created", 0), ("created", "2026-01-01T00:00:00+00:00"),
        ("parameters", {}), ("parameters", ["w"]), ("parameters", [PARAMETER, PARAMETER]),
        ("parameters", [PARAMETER | {"fate": "lost"}]), ("parameters", [PARAMETER | {"into": []}]),
        ("parameters", [PARAMETER | {"into": "w"}]), ("parameters", [PARAMETER | {"into": [1]}]),
        ("parameters", [PARAMETER | {"fate": "gone"}]), ("parameters", [PARAMETER | {"reason": "lost"}]),
        ("parameters", [PARAMETER | {"fate": "gone", "into": []}]), ("parameters", [PARAMETER | {"reason": None}]),
        ("parameters", [PARAMETER | {"sha256": "0"}]), ("parameters", [PARAMETER | {"name": ""}]),
        ("parameters", [PARAMETER | {"more": 1}]),
        ("extra", 1),
    ],
)  # fmt: skip
def test_refuses_a_manifest_with_a_bad_value(key: str, value: object, folder: Path) -> None:
    change_manifest(folder, lambda document: document.update({key: value}))
    sentence = refused(folder)
    assert str(folder / "manifest.json") in sentence
    assert key.removesuffix("s") in sentence


def test_reads_a_manifest_of_the_first_release_which_has_no_parameters(folder: Path) -> None:
    change_manifest(folder, lambda document: document.pop("parameters"))
    assert load_bundle(folder).manifest.parameters == ()


def test_refuses_a_manifest_without_one_of_its_keys(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    for key in json.loads(text).keys() - {"parameters"}:
        change_manifest(folder, lambda document, key=key: document.pop(key))
        assert key in refused(folder)
        (folder / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "input", "dtype": "float32"},
        {"name": "input", "dtype": "float32", "shape": [-1, 1, 2, 2], "layout": "NCHW"},
        {"name": "other", "dtype": "float32", "shape": [-1, 1, 2, 2]},
        {"name": "input", "dtype": "float64", "shape": [-1, 1, 2, 2]},
        {"name": "input", "dtype": "object", "shape": [-1, 1, 2, 2]},
        {"name": "input", "dtype": "float32", "shape": [-1, 1, 2]},
        {"name": "input", "dtype": "float32", "shape": [-1, 1, 2, -1]},
        {"name": "input", "dtype": "float32", "shape": [-1, 1, 2, -2]},
        {"name": "input", "dtype": "float32", "shape": [-1, 1, 2, 2.0]},
        {"name": "input", "dtype": "float32", "shape": [-1, 1, 2, 3]},
        {"name": "input", "dtype": "float32", "shape": "N122"},
        {"name": "input", "dtype": "float32", "shape": [-1] + [65536] * 3},
        {"name": "input", "dtype": "float32", "shape": [-1] * 33},
        {"name": "", "dtype": "float32", "shape": [-1, 1, 2, 2]},
    ],
)
def test_refuses_a_spec_that_is_not_the_graph_s(spec: dict[str, object], folder: Path) -> None:
    change_manifest(folder, lambda document: document.update(inputs=[spec], preprocessing=None))
    refused(folder)


def test_a_spec_may_state_a_size_that_the_graph_leaves_free(folder: Path) -> None:
    spec = {"name": "input", "dtype": "float32", "shape": [4, 1, 2, 2]}
    change_manifest(folder, lambda document: document.update(inputs=[spec]))
    assert "test_data_set_1" in refused(folder)  # its golden of one row no longer fits: the spec itself is taken


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"schema_version": 1, "schema_version": 1}', "'schema_version' stands twice"),
        ('{"schema_version": NaN}', "NaN is no JSON number"),
        ('{"schema_version": 1e999}', "1e999 is beyond a float"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested too deeply"),
        ('{"a": "\\ud800"}', "surrogate"),
        ("\ufeff{}", "not strict JSON"),
        ("[]", "holds a list"),
        ("", "not strict JSON"),
        ("9" * 5000, "not strict JSON"),
        ("{}", "None as 'schema_version'"),
        ("{'a': 1}", "not strict JSON"),
    ],
)
def test_refuses_json_that_is_not_strict(text: str, found: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    assert found in refused(folder)
    assert len(refused(folder)) < 1000


def test_refuses_a_manifest_that_is_no_text(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe{}")
    assert "not UTF-8" in refused(folder)


def test_refuses_a_manifest_of_gigabytes_unread(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 2**40)
    assert "has more than 67108864 bytes" in refused(folder)


def test_refuses_too_many_files(folder: Path) -> None:
    many = {f"golden/test_data_set_{at}/input_{of}.pb": "0" * 64 for at in range(100) for of in range(101)}
    change_manifest(folder, lambda document: document["files"].update(many))
    assert "expected at most 10000" in refused(folder)


# Contents, with the hashes mended


@pytest.mark.parametrize("file", ["fold.json", "parity.json"])
@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": Infinity}', "[1]", "{", "null"])
def test_refuses_documents_that_are_not_strict(file: str, text: str, folder: Path) -> None:
    (folder / file).write_text(text)
    mend(folder)
    assert str(folder / file) in refused(folder)


@pytest.mark.parametrize("data", [b"", b"a text file", b"\x08", pickle.dumps({"weights": [1.0]})])
def test_refuses_a_model_that_is_none(data: bytes, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(data)
    mend(folder)
    assert "model.onnx" in refused(folder)


@pytest.mark.parametrize("file", ["model.onnx", "reference.onnx"])
def test_refuses_external_data_that_is_not_hashed(file: str, folder: Path) -> None:
    model = onnx.load(folder / file)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "/etc/passwd"), ("offset", "0"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    (folder / file).write_bytes(model.SerializeToString())
    mend(folder)
    assert "in another file, '/etc/passwd'" in refused(folder)


def test_refuses_a_graph_of_other_outputs(folder: Path) -> None:
    model = make_model(tensors())
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    (folder / "reference.onnx").write_bytes(model.SerializeToString())
    mend(folder)
    assert "has the outputs 'logits' float32 [-1, 4]" in refused(folder)


@pytest.mark.parametrize(
    ("file", "change", "found"),
    [
        ("statistics.safetensors", {"bn.mean": None}, "norm 'bn'"),
        ("statistics.safetensors", {"bn.deviation": "bn.mean"}, "norm 'bn'"),
        ("statistics.safetensors", {"mean": "bn.mean"}, "the key 'mean'"),
        ("golden/truth.safetensors", {"test_data_set_0/logits": None}, "has the tensors []"),
        ("golden/truth.safetensors", {"test_data_set_7/logits": "test_data_set_0/logits"}, "test_data_set_7/logits"),
        ("golden/truth.safetensors", {"test_data_set_0/logits": "test_data_set_1/logits"}, "expected float64 [4, 3]"),
        ("golden/truth.safetensors", {"test_data_set_0/logits": "test_data_set_0/labels"}, "int64"),
    ],
)
def test_refuses_tensor_files_outside_the_schema(
    file: str, change: dict[str, str | None], found: str, folder: Path
) -> None:
    arrays = load_tensors((folder / file).read_bytes(), file)
    for key, origin in change.items():
        if origin is None:
            del arrays[key]
        else:
            arrays[key] = arrays[origin]
    (folder / file).write_bytes(dump_tensors(arrays, file))
    mend(folder)
    assert found in refused(folder)


@pytest.mark.parametrize("file", ["statistics.safetensors", "golden/truth.safetensors"])
@pytest.mark.parametrize(
    "data",
    [b"", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}", pickle.dumps([1]),
     (69).to_bytes(8, "little") + b'{"a.mean":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,8]}}'],
)  # fmt: skip
def test_refuses_a_tensor_file_that_is_none(file: str, data: bytes, folder: Path) -> None:
    (folder / file).write_bytes(data)
    mend(folder)
    assert "is no safetensors file" in refused(folder)


def golden_proto(**changes: Any) -> onnx.TensorProto:
    array = make_draft().goldens[0].inputs["input"]
    fields = {"name": "input", "dims": array.shape, "data_type": 1, "raw_data": array.tobytes(), **changes}
    return onnx.TensorProto(**fields)


@pytest.mark.parametrize(
    ("proto", "found"),
    [
        (golden_proto(name="logits"), "is 'logits' of ONNX type 1"),
        (golden_proto(data_type=6), "of ONNX type 6"),
        (golden_proto(dims=[2**31, 1, 2, 2]), "has 64 bytes for the shape"),
        (golden_proto(dims=[-4, 1, -2, 2]), "has 64 bytes for the shape"),
        (golden_proto(dims=[4, 1, 2]), "has 64 bytes for the shape"),
        (golden_proto(dims=[4, 1, 4, 1]), "tensor 'input'"),
        (golden_proto(raw_data=b""), "has 0 bytes"),
        (golden_proto(float_data=[1.0]), "more than raw data"),
        (golden_proto(data_location=1, raw_data=b""), "more than raw data"),
    ],
)
def test_refuses_a_golden_tensor_that_is_not_as_written(proto: onnx.TensorProto, found: str, folder: Path) -> None:
    (folder / "golden/test_data_set_0/input_0.pb").write_bytes(proto.SerializeToString())
    mend(folder)
    assert found in refused(folder)


def test_takes_a_golden_tensor_as_written(folder: Path) -> None:
    (folder / "golden/test_data_set_0/input_0.pb").write_bytes(golden_proto().SerializeToString())
    mend(folder)
    load_bundle(folder)


def test_refuses_golden_sets_with_a_gap(folder: Path) -> None:
    (folder / "golden/test_data_set_0").rename(folder / "golden/test_data_set_5")
    mend(folder)
    assert "golden/test_data_set_0/input_0.pb is missing" in refused(folder)


def test_takes_the_page_of_the_proof(folder: Path) -> None:
    (folder / "parity.html").write_text("<p>holds</p>")
    mend(folder)
    assert "parity.html" in load_bundle(folder).manifest.files
