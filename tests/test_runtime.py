"""Sessions come up as asked for, or not at all."""

from __future__ import annotations

import ctypes
import importlib.metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold import runtime
from bnfold.errors import BnfoldError
from bnfold.runtime import NoCuda, check_install, open_session, run


def doubled() -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def test_runs_a_model_and_names_its_outputs() -> None:
    outputs = run(open_session(doubled(), optimise=True), {"x": np.ones((3, 2), np.float32)})
    assert list(outputs) == ["y"]
    assert (outputs["y"] == 2).all()


def cuda_starts() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(cuda_starts(), reason="this machine has a CUDA driver")
def test_cuda_without_a_driver_is_one_sentence_and_no_silent_fallback() -> None:
    with pytest.raises(BnfoldError, match="device 'cuda'") as raised:
        open_session(doubled(), optimise=True, device="cuda")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not cuda_starts(), reason="this machine has no CUDA driver")
def test_cuda_with_a_driver_is_cuda() -> None:
    assert open_session(doubled(), optimise=True, device="cuda").get_providers()[0] == "CUDAExecutionProvider"


def test_auto_gives_a_session_whose_provider_can_be_read() -> None:
    session = open_session(doubled(), optimise=True, device="auto")
    assert session.get_providers()[0] in ("CUDAExecutionProvider", "CPUExecutionProvider")


def test_refuses_bytes_that_are_no_model() -> None:
    with pytest.raises(BnfoldError, match="cannot be opened"):
        open_session(b"no model", optimise=True)


def test_failed_session_says_so_once_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime would print four lines to stdout, and try again on another provider by itself."""
    data = doubled().replace(b"Add", b"A\xffd")  # the message on it is no UTF-8 either, hence a ValueError
    assert data != doubled()
    for device in ("cpu", "auto"):
        with pytest.raises(BnfoldError, match="cannot be opened"):
            open_session(data, optimise=True, device=device)
    assert capfd.readouterr() == ("", "")


def test_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BnfoldError, match=r"absent\.onnx"):
        open_session(tmp_path / "absent.onnx", optimise=True)


def test_refuses_an_input_of_the_wrong_shape() -> None:
    with pytest.raises(BnfoldError, match="cannot run"):
        run(open_session(doubled(), optimise=True), {"x": np.ones((3, 5), np.float32)})


def test_optimisations_off_leave_batch_norm_to_the_reference() -> None:
    """With them on, the runtime folds Conv-BN itself: then a comparison with the reference would prove nothing."""
    generator = np.random.default_rng(0)
    weights = {name: generator.uniform(0.5, 2, 4).astype(np.float32) for name in ("gamma", "beta", "mean", "var")}
    weights["w"] = generator.standard_normal((4, 2, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 4, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    x = {"x": generator.standard_normal((2, 2, 6, 6)).astype(np.float32)}
    plain = run(open_session(model, optimise=False), x)["y"]
    fused = run(open_session(model, optimise=True), x)["y"]
    assert np.isfinite(plain).all()
    assert (plain != fused).any(), "the same bits: the runtime folded both, or neither"


def test_notices_both_builds_of_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.0")
    with pytest.raises(BnfoldError, match="overwrite each other"):
        check_install()


@pytest.mark.skipif(cuda_starts(), reason="this machine has a CUDA driver")
@pytest.mark.parametrize("tf32", [False, True])
def test_the_reason_why_cuda_did_not_start_stands_by_itself(tf32: bool) -> None:
    with pytest.raises(NoCuda) as raised:
        open_session(doubled(), optimise=False, device="cuda", tf32=tf32)
    assert raised.value.reason
    assert raised.value.reason in str(raised.value)


@pytest.mark.parametrize(("tf32", "option"), [(False, "0"), (True, "1")])
def test_tf32_is_off_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tf32: bool, option: str) -> None:
    """ONNX Runtime has it on by itself."""
    asked = []

    def opened(_ort: object, _source: object, _options: object, providers: list) -> None:
        asked.append(providers)
        raise RuntimeError("no driver")

    monkeypatch.setattr(runtime, "_open", opened)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(NoCuda, match="no driver"):
        open_session(doubled(), optimise=True, device="cuda", tf32=tf32)
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": option})]]
