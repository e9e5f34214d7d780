from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from parity_mutants import replace

from bnfold.bundle import inspect_bundle, load_bundle
from bnfold.bundle.goldens import dump_tensors, load_tensors
from bnfold.parity.gate import check_gate

Mend = Callable[[Path], None]


def test_a_right_bundle_passes(pristine: Path) -> None:
    found = check_gate(load_bundle(pristine))
    assert found.passed
    assert found.reasons == ()
    assert 0.4 < found.worst_ulp <= 0.5
    assert 0 < found.ratio < 2
    assert found.folded_error == pytest.approx(found.ratio * found.unfolded_error)
    assert found.rows == found.agreeing == 133  # the samples and thirteen hard inputs
    assert found.provider == "CPUExecutionProvider"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["passed"] is True


def test_a_broken_channel_is_refused_by_name_with_the_hash_mended(folder: Path, mend: Mend) -> None:
    def broken(w: Any) -> Any:
        w = w.copy()
        w[2] *= np.float32(1.0001)
        return w

    model = onnx.load(folder / "model.onnx")
    replace(model, "block1.linear.weight.folded", broken)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    mend(folder)
    found = check_gate(load_bundle(folder))
    assert not found.passed
    assert "'block1.linear.weight.folded'" in found.reasons[0]
    assert "channel 2" in found.reasons[0]
    assert found.worst_ulp > 100


def test_answers_far_from_the_truth_are_refused(folder: Path, mend: Mend) -> None:
    """Right weights, but this host computes something else than the host that wrote the golden vectors."""
    path = folder / "golden" / "truth.safetensors"
    tensors = {name: np.array(array) for name, array in load_tensors(path.read_bytes(), "test").items()}
    tensors["test_data_set_0/output"] *= 1.01
    path.write_bytes(dump_tensors(tensors, "test"))
    mend(folder)
    found = check_gate(load_bundle(folder))
    assert not found.passed
    assert "output 'output'" in found.reasons[0]


def test_other_answers_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.parity import evidence

    right = evidence.run

    def wrong(session: Any, inputs: Any) -> Any:
        answers = right(session, inputs)
        optimised = session.get_session_options().graph_optimization_level.name == "ORT_ENABLE_ALL"
        return {name: array[:, ::-1] if optimised else array for name, array in answers.items()}

    monkeypatch.setattr(evidence, "run", wrong)
    found = check_gate(load_bundle(folder))
    assert not found.passed
    assert found.agreeing < found.rows
    assert any("top-1" in reason for reason in found.reasons)


def test_the_reference_runs_without_optimisations_and_the_model_as_it_is_served(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnfold.parity import evidence

    asked = []
    right = evidence.open_session

    def seen(model: Any, **options: Any) -> Any:
        asked.append(options)
        return right(model, **options)

    monkeypatch.setattr(evidence, "open_session", seen)
    check_gate(load_bundle(pristine), threads=2)
    options = {"device": "cpu", "threads": 2}
    assert sorted(asked, key=lambda o: o["optimise"]) == [{"optimise": False, **options}, {"optimise": True, **options}]


def test_a_device_that_is_not_there_is_a_reason(pristine: Path) -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers() and _has_gpu():
        pytest.skip("this machine has a GPU")
    found = check_gate(load_bundle(pristine), device="cuda")
    assert not found.passed
    assert "CUDA" in found.reasons[0]


def _has_gpu() -> bool:
    return Path("/dev/nvidia0").exists()


def test_a_fold_report_outside_its_schema_is_a_reason(folder: Path, mend: Mend) -> None:
    (folder / "fold.json").write_text('{"norms": 3}')
    mend(folder)
    found = check_gate(inspect_bundle(folder)[0])
    assert not found.passed
    assert "fold.json" in found.reasons[0]


def test_needs_no_torch(pristine: Path) -> None:
    code = (
        "import sys; from bnfold.bundle import load_bundle; from bnfold.parity.gate import check_gate\n"
        "assert check_gate(load_bundle(sys.argv[1])).passed\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(pristine)], check=True, timeout=120)
