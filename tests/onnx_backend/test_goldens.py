"""The golden vectors of a bundle are ONNX test data: the onnx package's own code reads and replays them."""

from __future__ import annotations

import json
import shutil
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.base import Backend, BackendRep
from onnx.backend.test import runner
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from bnfold.runtime import open_session, run

MODELS = Path(__file__).parents[2] / "models"
BUNDLES = sorted(path.parent for path in MODELS.glob("*/*/manifest.json"))


class OnTheRuntime(BackendRep):
    """A model prepared by the backend below."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.session = open_session(model.SerializeToString(), optimise=True)

    def run(self, inputs: Sequence[Any], **_: Any) -> tuple[Any, ...]:
        names = [value.name for value in self.session.get_inputs()]
        return tuple(run(self.session, dict(zip(names, inputs, strict=True))).values())


class RuntimeBackend(Backend):
    """ONNX Runtime behind the interface that the onnx package's test runner speaks."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, *_: Any, **__: Any) -> OnTheRuntime:
        return OnTheRuntime(model)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


@pytest.fixture
def case(bundle: Path, tmp_path: Path) -> TestCase:
    """The bundle's model and goldens in the folders of a backend test, as the package's own loader finds them."""
    folder = tmp_path / "bundles" / "test_bundle"
    folder.mkdir(parents=True)
    shutil.copy(bundle / "model.onnx", folder)
    for vectors in sorted((bundle / "golden").glob("test_data_set_*")):
        shutil.copytree(vectors, folder / vectors.name)
    (folder / "data.json").write_text(json.dumps({"rtol": 1e-5, "atol": 1e-5}))
    (found,) = load_model_tests(str(tmp_path), "bundles")
    return found


pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: f"{bundle.parent.name}-{bundle.name}")


def replay(case: TestCase, monkeypatch: pytest.MonkeyPatch) -> unittest.TestResult:
    """Run a case with the package's own runner, which else loads all cases of the package."""
    monkeypatch.setattr(runner, "load_model_tests", lambda kind: [case] if kind == "simple" else [])
    cases = runner.Runner(RuntimeBackend).test_cases["OnnxBackendSimpleModelTest"]
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(cases).run(result)
    return result


def test_the_onnx_test_runner_replays_the_goldens(case: TestCase, monkeypatch: pytest.MonkeyPatch) -> None:
    result = replay(case, monkeypatch)
    assert result.testsRun >= 1
    assert not result.failures, result.failures
    assert not result.errors, result.errors
    assert len(result.skipped) < result.testsRun


def test_the_onnx_test_runner_sees_a_wrong_output(case: TestCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    path = Path(case.model_dir) / "test_data_set_0" / "output_0.pb"
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    wrong = numpy_helper.to_array(tensor) + np.float32(1)
    path.write_bytes(numpy_helper.from_array(wrong, tensor.name).SerializeToString())
    assert replay(case, monkeypatch).failures


def test_goldens_are_named_as_the_model_names_them(bundle: Path) -> None:
    """input_0.pb belongs to the first input that the model declares, and so on."""
    model = onnx.load(bundle / "model.onnx")
    sets = sorted((bundle / "golden").glob("test_data_set_*"))
    assert sets
    for folder in sets:
        for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
            assert len(list(folder.glob(f"{kind}_*.pb"))) >= len(values)
            for at, value in enumerate(values):
                tensor = onnx.TensorProto.FromString((folder / f"{kind}_{at}.pb").read_bytes())
                stated = value.type.tensor_type
                assert tensor.name == value.name
                assert tensor.data_type == stated.elem_type
                assert len(tensor.dims) == len(stated.shape.dim)
                wanted = [(dim.dim_value, size) for dim, size in zip(stated.shape.dim, tensor.dims, strict=True)]
                assert all(fixed in (0, size) for fixed, size in wanted)


def test_the_onnx_reference_evaluator_gives_the_stored_outputs(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    folder = bundle / "golden" / "test_data_set_0"
    inputs = {
        value.name: numpy_helper.to_array(onnx.TensorProto.FromString((folder / f"input_{at}.pb").read_bytes()))[:4]
        for at, value in enumerate(model.graph.input)
    }
    stored = numpy_helper.to_array(onnx.TensorProto.FromString((folder / "output_0.pb").read_bytes()))[:4]
    found = np.asarray(ReferenceEvaluator(model).run(None, inputs)[0])
    assert found.shape == stored.shape
    assert np.isfinite(found).all()
    assert np.abs(found - stored).max() <= 1e-5 * np.abs(stored).max()
