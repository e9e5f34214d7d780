from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.bundle import Manifest, Parameter, Preprocessing, TensorSpec
from bnfold.bundle.manifest import (
    DTYPES,
    MANIFEST,
    OPTIONAL_FILES,
    OUTPUT_KINDS,
    REQUIRED_FILES,
    check_name,
    parse_version,
)
from bnfold.bundle.modelfile import MAX_IR_VERSION, MAX_OPSET, MIN_IR_VERSION
from bnfold.documents import dump_object, parse_object
from bnfold.errors import BundleError
from bnfold.preprocessing import MAX_PIXELS, MAX_SIDE

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
texts = st.text(min_size=1, max_size=20).filter(str.isprintable)
names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=20)
specs = st.builds(
    TensorSpec,
    texts.filter(lambda name: name != "labels"),
    st.sampled_from(DTYPES),
    st.lists(st.integers(-1, 9), max_size=5).map(tuple),
)
unique_specs = st.lists(specs, min_size=1, max_size=3, unique_by=lambda spec: spec.name).map(tuple)
parameters = st.builds(
    Parameter,
    texts,
    hashes,
    st.sampled_from(["unchanged", "folded"]),
    st.lists(texts, min_size=1, max_size=3).map(tuple),
) | st.builds(Parameter, texts, hashes, st.just("gone"), st.just(()), texts)
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    outputs = draw(unique_specs)
    shape = outputs[0].shape
    kind = draw(st.sampled_from(OUTPUT_KINDS))
    classes = shape[-1] if shape and shape[-1] > 0 else 3 if shape and shape[-1] == -1 else None
    labels = draw(st.none() if classes is None else st.none() | st.lists(texts, min_size=classes, max_size=classes))
    return Manifest(
        schema_version=1,
        name=draw(names),
        version=draw(st.integers(1, 10**9 - 1)),
        source={"kind": "onnx", "file": draw(names)},
        inputs=draw(unique_specs),
        outputs=outputs,
        output_kind=kind,  # type: ignore[arg-type]
        labels=None if labels is None else tuple(labels),
        preprocessing=None,
        fold_map=tuple(draw(st.lists(st.dictionaries(texts, json_values, max_size=3), max_size=3))),
        source_tensors=draw(st.dictionaries(texts, hashes, max_size=3)),
        tool_versions=draw(st.dictionaries(texts, texts, max_size=3)),
        files={file: draw(hashes) for file in REQUIRED_FILES},
        created="2026-01-31T23:59:59Z",
        parameters=tuple(draw(st.lists(parameters, max_size=3, unique_by=lambda parameter: parameter.name))),
    )


@settings(max_examples=200, deadline=None)
@given(manifests())
def test_a_manifest_comes_back_as_it_was_written(manifest: Manifest) -> None:
    data = dump_object(manifest.to_dict(), "manifest.json")
    assert Manifest.from_dict(parse_object(data, "manifest.json")) == manifest


@settings(max_examples=200, deadline=None)
@given(manifests(), st.data())
def test_any_value_of_another_type_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    document = manifest.to_dict()
    key = data.draw(st.sampled_from(sorted(document)))
    kinds: list[Any] = [None, True, 1.5, -7, "text", ["text"], {"text": 1}]
    fine = {"labels": type(None), "preprocessing": type(None)}
    value = data.draw(st.sampled_from([kind for kind in kinds if type(kind) is not fine.get(key)]))
    if key == "name" and value == "text":
        value = "te/xt"
    if key == "labels" and value == ["text"]:
        value = [""]
    with pytest.raises(BundleError, match=key):
        Manifest.from_dict({**document, key: value})


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_any_json_is_a_manifest_or_refused(value: Any) -> None:
    document = json.dumps({"schema_version": 1, "files": value}).encode()
    with pytest.raises(BundleError):
        Manifest.from_dict(parse_object(document, "manifest.json"))


@pytest.mark.parametrize("name", ["x", "digits-cnn", "A.b_c-9", "-", "7x", "x" * 128])
def test_takes_the_names_of_models(name: str) -> None:
    assert check_name(name, "it") == name


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "a\\b", "a b", "a\n", "é", "x" * 129, "a\0b"])
def test_refuses_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(BundleError, match="as the name of the model"):
        check_name(name, "it")


@pytest.mark.parametrize(
    ("name", "version"),
    [("1", 1), ("10", 10), ("999999999", 999999999), ("0", None), ("01", None), ("1.0", None), ("-1", None),
     ("", None), ("1\n", None), ("٣", None), ("1000000000", None), (".writing-1f", None)],
)  # fmt: skip
def test_a_version_is_a_plain_number(name: str, version: int | None) -> None:
    assert parse_version(name) == version


def test_an_output_must_not_take_the_key_of_the_true_classes() -> None:
    spec = TensorSpec("labels", "int64", (-1,))
    with pytest.raises(BundleError, match="outputs of another name than 'labels'"):
        Manifest.from_dict(
            {
                **dict.fromkeys(Manifest.__dataclass_fields__),
                "schema_version": 1, "name": "x", "version": 1, "source": {"kind": "onnx"},
                "inputs": [TensorSpec("labels", "int64", (-1,)).to_dict()], "outputs": [spec.to_dict()],
            }
        )  # fmt: skip


def test_preprocessing_belongs_to_one_input_of_its_shape() -> None:
    wanted = Preprocessing("L", 8, 8, 1 / 255, (0.0,), (1.0,))
    good = TensorSpec("input", "float32", (-1, 1, 8, 8))
    document = {
        "schema_version": 1, "name": "x", "version": 1, "source": {"kind": "onnx"}, "inputs": [good.to_dict()],
        "outputs": [TensorSpec("y", "float32", (-1, 2)).to_dict()], "output_kind": "logits", "labels": None,
        "preprocessing": wanted.to_dict(), "fold_map": [], "source_tensors": {}, "tool_versions": {},
        "files": dict.fromkeys(REQUIRED_FILES, "0" * 64), "created": "2026-01-31T23:59:59Z",
    }  # fmt: skip
    assert Manifest.from_dict(document).preprocessing == wanted
    free = TensorSpec("input", "float32", (-1, 1, -1, -1))
    assert Manifest.from_dict({**document, "inputs": [free.to_dict()]}).preprocessing == wanted
    for shape in ((-1, 3, 8, 8), (-1, 1, 8, 9), (-1, 64)):
        bad = TensorSpec("input", "float32", shape)
        with pytest.raises(BundleError, match=r"preprocessing to the shape \[-1, 1, 8, 8\]"):
            Manifest.from_dict({**document, "inputs": [bad.to_dict()]})
    with pytest.raises(BundleError, match="one input of that shape"):
        Manifest.from_dict({**document, "inputs": [good.to_dict(), free.to_dict() | {"name": "mask"}]})


def test_the_page_documents_every_key_and_file() -> None:
    page = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text()
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    documented = {*Manifest.__dataclass_fields__, *Parameter.__dataclass_fields__}
    assert set(re.findall(r"`(\w+)`", rows)) == documented
    assert all(file in page for file in (*REQUIRED_FILES, *OPTIONAL_FILES, MANIFEST))
    for number in (MAX_PIXELS, MAX_SIDE):
        assert f"{number:,}" in page or str(number) in page
    assert f"IR version other than {MIN_IR_VERSION} to {MAX_IR_VERSION}" in page
    assert f"operator set above {MAX_OPSET}" in page
