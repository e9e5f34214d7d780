"""The published schema against real documents, and these against the schema: neither says more than the other."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from parity_networks import small_cnn

from bnfold.build import build_bundle
from bnfold.parity import ParityReport, TierResult, verify
from bnfold.parity.audit import audit
from bnfold.parity.audit.report import SCHEMA_VERSION as AUDIT_VERSION
from bnfold.parity.report import SCHEMA_VERSION
from bnfold.parity.schema import load_schema

DESCRIBED = ("T0", "T1", "T2", "T3", "T3b", "T4")


def errors(document: dict[str, Any], kind: Any = "parity") -> list[str]:
    found = jsonschema.Draft202012Validator(load_schema(kind)).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def undocumented(document: dict[str, Any]) -> Iterator[str]:
    """Fields of a document that the schema does not describe, in the document, its tiers, their numbers and rows."""
    schema = load_schema()
    parts = schema["$defs"]
    yield from (key for key in document if key not in schema["properties"])
    for tier in document["tiers"]:
        name = tier["tier"]
        yield from (f"{name}.{key}" for key in tier if key not in parts["tier"]["properties"])
        if f"{name}_summary" not in parts:
            continue
        numbers = parts[f"{name}_summary"]["properties"]
        yield from (f"{name}.summary.{key}" for key in tier["summary"] if key not in numbers)
        if f"{name}_row" in parts:
            fields = parts[f"{name}_row"]["properties"]
            yield from (f"{name}.details.{key}" for row in tier["details"] for key in row if key not in fields)


@pytest.fixture
def broken(folder: Path, mend: Any) -> Path:
    """A bundle with one channel of the folded model changed, and every hash mended."""
    model = onnx.load(folder / "model.onnx")
    changed = next(one for one in model.graph.initializer if one.name.endswith(".folded") and len(one.dims) == 4)
    values = numpy_helper.to_array(changed).copy()
    values[0] *= np.float32(1.5)
    changed.CopyFrom(numpy_helper.from_array(values, changed.name))
    onnx.save(model, folder / "model.onnx")
    mend(folder)
    return folder


@pytest.mark.parametrize(("kind", "version"), [("parity", SCHEMA_VERSION), ("audit", AUDIT_VERSION)])
def test_the_schema_is_one_and_has_the_version_of_the_report(kind: Any, version: int) -> None:
    schema = load_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"]["const"] == version
    assert schema["$id"] == f"urn:bnfold:{kind}:{version}"


@pytest.mark.parametrize("kind", ["parity", "audit"])
def test_every_field_has_a_description(kind: Any) -> None:
    def bare(part: Any, path: str) -> Iterator[str]:
        if isinstance(part, dict):
            for name, field in part.get("properties", {}).items():
                if isinstance(field, dict) and not field.get("description") and "enum" not in field:
                    yield f"{path}.{name}"
            for key, value in part.items():
                if key not in ("if", "then"):
                    yield from bare(value, f"{path}.{key}")
        elif isinstance(part, list):
            for at, value in enumerate(part):
                yield from bare(value, f"{path}[{at}]")

    schema = load_schema(kind)
    schema["$defs"]["tier"].pop("allOf", None)  # these only refer
    assert list(bare(schema, "")) == []


def test_a_document_of_a_bundle_that_holds_is_valid_and_described(pristine: Path) -> None:
    document = verify(pristine).to_dict()
    assert document["holds"] is True
    assert errors(document) == []
    assert list(undocumented(document)) == []
    assert set(DESCRIBED) <= {tier["tier"] for tier in document["tiers"]}
    stored = json.loads((pristine / "parity.json").read_text())
    assert errors(stored) == []


def test_a_document_of_a_bundle_that_fails_is_valid_and_described(broken: Path) -> None:
    document = verify(broken).to_dict()
    assert document["holds"] is False
    assert errors(document) == []
    assert list(undocumented(document)) == []


def test_a_document_that_cannot_tell_is_valid(tmp_path: Path) -> None:
    onnx.save(small_cnn(), tmp_path / "net.onnx")
    data = np.random.default_rng(2).random((4, 1, 8, 8)).astype(np.float32), None
    bundle = build_bundle(tmp_path / "net.onnx", tmp_path / "models" / "net", data=data, output_kind="raw")
    document = verify(bundle, tiers=("T0", "T4")).to_dict()
    assert document["holds"] is None
    assert errors(document) == []
    assert list(undocumented(document)) == []


def test_numbers_that_are_not_finite_are_valid_as_null(broken: Path) -> None:
    model = onnx.load(broken / "model.onnx")
    changed = next(one for one in model.graph.initializer if one.name.endswith(".folded") and len(one.dims) == 4)
    values = numpy_helper.to_array(changed).copy()
    values[0] = np.nan
    changed.CopyFrom(numpy_helper.from_array(values, changed.name))
    onnx.save(model, broken / "model.onnx")
    document = verify(broken, tiers=("T0", "T1", "T2", "T3")).to_dict()
    assert any(row["worst_ulp"] is None for row in document["tiers"][1]["details"])
    assert errors(document) == []


def test_documents_of_audits_are_valid_and_described(pristine: Path, broken: Path) -> None:
    schema = load_schema("audit")
    for folded, holds in ((pristine, True), (broken, False)):
        document = audit(folded / "model.onnx", pristine / "reference.onnx").to_dict()
        assert document["holds"] is holds
        assert errors(document, "audit") == []
        assert document.keys() <= schema["properties"].keys()
        fields = schema["$defs"]["tensor"]["properties"].keys()
        assert all(row.keys() <= fields for row in document["tensors"])
        document["tensors"][0]["verdict"] = "fine"
        assert len(errors(document, "audit")) == 1


def test_the_command_writes_what_the_schema_describes(pristine: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bnfold", "verify", str(pristine), "--json", "--tier", "T0,T1,T2"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert errors(json.loads(ran.stdout)) == []


def test_tiers_and_rows_that_are_not_known_are_allowed() -> None:
    tier = TierResult("T9", "of the future", "holds", "h", {"anything": [1]}, (), ({"what": {"ever": math.pi}},))
    document = ParityReport("net", 1, (tier,)).to_dict()
    document["of the future"] = True
    assert errors(document) == []
    assert next(undocumented({**document, "tiers": []})) == "of the future"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("holds",), "yes"),
        (("T1", "status"), "passes"),
        (("T1", "summary", "tensors"), -1),
        (("T1", "summary", "worst_ulp"), "0.5"),
        (("T1", "details", 0, "not_nearest"), None),
        (("T2", "details", 0, "bad"), 0.5),
        (("T3", "details", 0, "folded_rms"), -1.0),
        (("T4", "summary", "agreement"), 1.5),
    ],
)
def test_documents_that_are_wrong_are_not_valid(pristine: Path, path: tuple[Any, ...], value: object) -> None:
    document = verify(pristine, tiers=("T1", "T2", "T3", "T4")).to_dict()
    place: Any = {**document, **{tier["tier"]: tier for tier in document["tiers"]}}
    for step in path[:-1]:
        place = place[step]
    assert path[-1] in place
    place[path[-1]] = value
    document = {key: place[key] for key in document} if len(path) == 1 else document
    assert errors(document) != []


@pytest.mark.parametrize("level", ["document", "tier", "summary"])
def test_a_field_that_the_schema_does_not_describe_is_seen(pristine: Path, level: str) -> None:
    document = verify(pristine, tiers=("T0",)).to_dict()
    tier = document["tiers"][0]
    {"document": document, "tier": tier, "summary": tier["summary"]}[level]["new"] = 1
    assert [name.rpartition(".")[2] for name in undocumented(document)] == ["new"]
