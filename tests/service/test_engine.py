"""The interface between engine and runtime: both classes of runtime give the same, and CUDA is CUDA or an error."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.bundle import load_bundle
from bnfold.errors import BnfoldError
from bnfold.runtime import NoCuda, open_session
from service.engine import Runtime, open_engine
from service.engine.cuda import BoundRuntime, pad_to, padded_sizes, provider_options
from service.engine.opening import open_runtime
from service.engine.runtimes import CpuRuntime
from service.engine.warming import warm_up
from service.errors import ModelFault
from service.settings import Settings
from service.telemetry.metrics import Metrics

X = np.random.default_rng(0).random((9, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def session(repository: Path) -> Any:
    return open_session(load_bundle(repository / "digits" / "1").session_source(), optimise=True)


def count_network() -> bytes:
    """(N, 2) -> the rows that the graph was given, N times: what padding does is seen from inside."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Cast", ["shape"], ["rows"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "rows"], ["y"]),
    ]
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy")
    graph = helper.make_graph(nodes, "count", [x], [y], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_bound_and_plain_runtimes_give_the_same(session: Any):
    plain: Runtime = CpuRuntime(session, ["logits"], large_rows=64)
    bound: Runtime = BoundRuntime(session, ["logits"], "cpu", largest=8)
    assert plain.provider == bound.provider == "CPUExecutionProvider"
    assert plain.input_names == bound.input_names == {"input"}
    answers = []
    for rows in (1, 2, 3, 5, 8, 9, 3):
        wanted, found = (runtime.run({"input": X[:rows]}, rows)["logits"] for runtime in (plain, bound))
        assert found.shape == wanted.shape == (rows, 10)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
        answers.append((found, found.copy()))
    for kept, then in answers:  # an answer is no view of a buffer that the next call uses
        assert np.array_equal(kept, then)


@pytest.mark.parametrize(("rows", "inside"), [(1, 1), (2, 2), (3, 4), (5, 8), (7, 8), (11, 12), (12, 12), (13, 13)])
def test_batches_are_padded_to_few_sizes_and_nobody_sees_it(rows: int, inside: int):
    runtime = BoundRuntime(open_session(count_network(), optimise=False), ["y"], "cpu", largest=12)
    found = runtime.run({"x": np.ones((rows, 2), np.float32)}, rows)["y"]
    assert found.shape == (rows, 2)
    assert set(found.ravel()) == {inside}


def test_padding_takes_powers_of_two_up_to_the_largest_batch():
    assert padded_sizes(64) == [1, 2, 4, 8, 16, 32, 64]
    assert padded_sizes(12) == [1, 2, 4, 8, 12]
    assert all(pad_to(rows, 64) >= rows for rows in range(1, 200))
    assert pad_to(0, 64) == 0  # a model without a batch


def test_warming_up_runs_each_size_once(repository: Path):
    bundle = load_bundle(repository / "digits" / "1")
    runtime = BoundRuntime(open_session(bundle.session_source(), optimise=True), ["logits"], "cpu", largest=4)
    seen: list[int] = []

    class Noting:
        provider, input_names = runtime.provider, runtime.input_names

        def run(self, inputs: Any, rows: int) -> Any:
            seen.append(rows)
            return runtime.run(inputs, rows)

        def close(self) -> None:
            runtime.close()

    warm_up(Noting(), bundle.goldens()[0], padded_sizes(4), "digits/1")
    assert seen == [1, 2, 4]
    with pytest.raises(BnfoldError, match="digits/1 cannot run its golden vectors here"):
        warm_up(
            CpuRuntime(open_session(count_network(), optimise=False), ["y"], 4), bundle.goldens()[0], [1], "digits/1"
        )


@pytest.mark.parametrize("kind", ["plain", "bound"])
def test_a_closed_runtime_runs_no_more(session: Any, kind: str):
    runtime = CpuRuntime(session, ["logits"], 8) if kind == "plain" else BoundRuntime(session, ["logits"], "cpu", 8)
    runtime.run({"input": X}, 9)
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        runtime.run({"input": X}, 9)


def test_an_engine_counts_who_uses_it_and_says_what_failed(repository: Path):
    bundle = load_bundle(repository / "digits" / "1")
    engine = open_engine(bundle, "digits", 1, "cpu", Metrics(), Settings(repository=repository))
    assert (engine.label, engine.batchable, engine.provider) == ("digits/1", True, "CPUExecutionProvider")
    engine.take()
    engine.take()
    engine.release()
    assert not engine.idle.is_set()
    engine.release()
    assert engine.in_flight == 0
    asyncio.run(asyncio.wait_for(engine.idle.wait(), 1))
    engine.close()
    with pytest.raises(ModelFault, match="digits/1 failed on this input"):
        engine.run({"input": X})


def test_the_cuda_provider_is_given_no_tf32_and_the_search_that_was_chosen():
    assert provider_options("heuristic") == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


def test_cuda_without_a_driver_is_one_sentence_and_never_the_cpu(repository: Path):
    source = load_bundle(repository / "digits" / "1").session_source()
    try:
        open_session(source, optimise=True, device="cuda")
    except NoCuda:
        with pytest.raises(NoCuda, match="device 'cuda' was asked for, but CUDA did not start") as refused:
            open_runtime(source, ["logits"], "cuda", Settings(repository=repository))
        assert "\n" not in str(refused.value)
    else:
        runtime = open_runtime(source, ["logits"], "cuda", Settings(repository=repository))
        assert runtime.provider == "CUDAExecutionProvider"
        assert runtime.run({"input": X[:3]}, 3)["logits"].shape == (3, 10)
