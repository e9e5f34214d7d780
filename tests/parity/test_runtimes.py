"""T5 on this machine. CUDA is played by the CPU: there it can be tried up to the driver alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from parity_networks import Builder
from parity_tf32 import in_tf32

from bnfold.build import build_bundle
from bnfold.bundle import Bundle, inspect_bundle
from bnfold.errors import BnfoldError, ParityError
from bnfold.parity.evidence import Evidence
from bnfold.parity.runtimes import Cell, RuntimeMatrix, check_runtimes
from bnfold.parity.runtimes import places as places_module
from bnfold.parity.runtimes.judgement import distance, invariance
from bnfold.parity.runtimes.places import Place
from bnfold.parity.runtimes.trials import Batch, Trials, make_trials, rows_are_independent
from bnfold.runtime import NoCuda, open_session
from bnfold.samples import Samples

ONE_PLACE = (Place("CPU with 1 thread", "cpu", 1),)


def check(folder: Path, **options: Any) -> RuntimeMatrix:
    return check_runtimes(Evidence(inspect_bundle(folder)[0]), **options)


@pytest.fixture
def one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the place does not matter, one will do."""
    monkeypatch.setattr("bnfold.parity.runtimes.matrix.list_places", lambda: ONE_PLACE)


def spoil(folder: Path, change: Callable[[np.ndarray], None], mend: Callable[[Path], None]) -> None:
    """Change the first folded weight of model.onnx."""
    model = onnx.load(folder / "model.onnx")
    tensor = next(one for one in model.graph.initializer if one.name.endswith("folded") and len(one.dims) == 4)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, folder / "model.onnx")
    mend(folder)


# -------------------------------------------------------------------------------------------------- a whole matrix


def test_a_right_fold_holds_in_every_place(pristine: Path) -> None:
    said: list[str] = []
    found = check(pristine, progress=said.append)
    assert found.holds is True, found.sentences()
    places = {cell.place for cell in found.measured}
    assert "CPU with 1 thread" in places
    assert {cell.batch for cell in found.measured} == {1, 2, 7, 64}
    assert {cell.optimised for cell in found.measured} == {False, True}
    assert len(found.measured) == 8 * len(places)
    assert all(cell.agreeing == cell.rows for cell in found.measured)
    assert all(cell.provider == "CPUExecutionProvider" for cell in found.measured if cell.place.startswith("CPU"))
    assert {one.rows for one in found.invariances} == {64}
    assert any("optimisations all" in text for text in said)
    for cell in found.measured:
        if cell.place == "CPU with 1 thread" and cell.optimised is False and cell.worst is not None:
            assert cell.reference_rms == cell.worst.unfolded_rms  # the yardstick's own cell
    document = found.to_dict()
    json.dumps(document, allow_nan=False)
    assert len(document["rows"]) == len(found.cells) + len(found.invariances)
    assert document["holds"] is True
    assert "cells hold" in found.headline()


@pytest.mark.skipif(places_module._cores() < 2, reason="one core: one thread is all threads")
def test_all_cores_are_a_place_of_their_own(pristine: Path) -> None:
    assert {cell.threads for cell in check(pristine).measured if cell.provider == "CPUExecutionProvider"} == {
        1,
        places_module._cores(),
    }


def test_cuda_that_does_not_come_up_is_one_row_with_the_reason(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, device: str, **__: Any) -> Any:
        assert device == "cuda"
        raise NoCuda("libcuda.so.1 is not there")

    cuda = tuple(place for place in places_module.list_places() if place.device == "cuda")
    assert [place.tf32 for place in cuda] == [False, True]
    monkeypatch.setattr("bnfold.parity.runtimes.matrix.list_places", lambda: (*ONE_PLACE, *cuda))
    monkeypatch.setattr(
        places_module,
        "open_session",
        lambda *a, **k: refuse(*a, **k) if k["device"] == "cuda" else open_session(*a, **k),
    )
    found = check(pristine)
    assert found.holds is True
    (absent,) = (cell for cell in found.cells if cell.absent)
    assert absent.sentence() == "CUDA: not present: libcuda.so.1 is not there"
    assert absent.to_dict()["status"] == "not present"
    assert found.headline().endswith("not present: CUDA")


def test_the_reference_is_the_yardstick_with_optimisations_off(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[bytes, bool]] = []

    def watch(model: Any, *, optimise: bool, **options: Any) -> Any:
        opened.append((model, optimise))
        return open_session(model, optimise=optimise, **options)

    monkeypatch.setattr(places_module, "open_session", watch)
    monkeypatch.setattr("bnfold.parity.runtimes.matrix.list_places", lambda: ONE_PLACE)
    check(pristine)
    assert opened[0] == ((pristine / "reference.onnx").read_bytes(), False)


def scaled(factor: float) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array *= np.float32(factor)

    return change


def broken(array: np.ndarray) -> None:
    array.reshape(-1)[0] = np.nan


@pytest.mark.usefixtures("one_place")
@pytest.mark.parametrize("change", [scaled(1.01), scaled(-1), broken])
def test_a_wrong_fold_fails_in_every_cell(folder: Path, mend: Callable, change: Callable) -> None:
    spoil(folder, change, mend)
    found = check(folder)
    assert found.holds is False
    assert {cell.holds for cell in found.measured} == {False}
    assert found.sentences()[0].startswith("CPU with 1 thread, optimisations off, batch 1: output 'output'")
    assert found.headline().startswith("0 of 8 cells hold")
    assert found.to_dict()["rows"][0]["status"] == "fails"


@pytest.mark.usefixtures("one_place")
def test_another_answer_is_named_beside_the_error(folder: Path, mend: Callable) -> None:
    spoil(folder, scaled(-1), mend)
    assert any("top-1 answers differ" in cell.problem for cell in check(folder).measured)


@pytest.mark.usefixtures("one_place")
def test_a_model_that_cannot_be_opened_fails_and_is_no_traceback(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = (pristine / "reference.onnx").read_bytes()

    def refuse(model: Any, **options: Any) -> Any:
        if model != reference:
            raise BnfoldError("model.onnx cannot be opened by ONNX Runtime: no such operator")
        return open_session(model, **options)

    monkeypatch.setattr(places_module, "open_session", refuse)
    found = check(pristine)
    assert found.holds is False
    assert found.sentences() == tuple(
        f"CPU with 1 thread, optimisations {which}: model.onnx cannot be opened by ONNX Runtime: no such operator"
        for which in ("off", "all")
    )


# ----------------------------------------------------------------------------------------------- kinds of networks


def build(tmp_path: Path, model: onnx.ModelProto, **options: Any) -> Bundle:
    tmp_path.mkdir(exist_ok=True)
    onnx.save(model, tmp_path / "net.onnx")
    return build_bundle(tmp_path / "net.onnx", tmp_path / "models" / "net", **options)


def network(batch: int | str, *, mixing: bool = False, seed: int = 0) -> onnx.ModelProto:
    """Two inputs, two outputs: norms behind a Gemm, and the sum of the inputs; mixing: less the mean of the batch."""
    b = Builder(np.random.default_rng(seed))
    total = b.node("Add", ["left", "right"])
    b.constant("w", b.weight(6, 4).T.copy())
    b.constant("c", b.normal(6))
    out = b.batch_norm(b.node("Gemm", [total, "w", "c"]), "bn", 6)
    if mixing:
        b.constant("axes", np.array([0], np.int64))
        out = b.node("Sub", [out, b.node("ReduceMean", [out, "axes"], keepdims=1)])
    for node in b.nodes:
        node.output[:] = ["normed" if name == out else "total" if name == total else name for name in node.output]
        node.input[:] = ["total" if name == total else name for name in node.input]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 4]) for n in ("left", "right", "total")]
    graph = helper.make_graph(
        b.nodes, "g", values[:2],
        [helper.make_tensor_value_info("normed", TensorProto.FLOAT, [batch, 6]), values[2]], b.tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.usefixtures("one_place")
def test_networks_with_several_inputs_and_outputs(tmp_path: Path) -> None:
    found = check(build(tmp_path, network("N")).path)
    assert found.holds is True, found.sentences()
    assert {len(cell.corners) for cell in found.measured} == {2}
    assert {cell.agreeing for cell in found.measured} == {None}


@pytest.mark.usefixtures("one_place")
def test_a_fixed_batch_size_is_the_only_one_and_that_is_said(tmp_path: Path) -> None:
    found = check(build(tmp_path, network(3)).path)
    assert found.holds is True, found.sentences()
    assert {cell.batch for cell in found.measured} == {3}
    assert "the network takes batches of 3 alone; no other batch size could be tried" in found.sentences()
    assert [one.sizes for one in found.invariances] == [(3,), (3,)]  # over positions


@pytest.mark.usefixtures("one_place")
@pytest.mark.parametrize("batch", ["N", 3])
def test_rows_that_depend_on_one_another_have_the_truth_of_their_batch(tmp_path: Path, batch: int | str) -> None:
    found = check(build(tmp_path, network(batch, mixing=True)).path)
    assert found.holds is True, found.sentences()
    assert found.invariances == ()
    assert any("depend on one another" in note for note in found.notes)
    assert all(cell.worst is not None and cell.worst.unfolded_error < 1e-4 for cell in found.measured)


@pytest.mark.usefixtures("one_place")
def test_a_size_that_the_reference_does_not_take_is_absent(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bnfold.parity.runtimes.trials as trials_module
    from bnfold.runtime import run

    def refuse(session: Any, inputs: Any) -> Any:
        if len(next(iter(inputs.values()))) == 7:
            raise BnfoldError("ONNX Runtime cannot run the model on this input: Reshape")
        return run(session, inputs)

    monkeypatch.setattr(trials_module, "run", refuse)
    found = check(pristine)
    assert found.holds is True
    assert {cell.batch for cell in found.measured} == {1, 2, 64}
    assert {cell.batch for cell in found.cells if cell.absent} == {7}


@pytest.mark.usefixtures("one_place")
def test_given_samples_are_run_against_their_own_truth(pristine: Path) -> None:
    rng = np.random.default_rng(5)
    samples = Samples({"input": rng.random((9, 1, 8, 8)).astype(np.float32)}, None)
    found = check(pristine, samples=samples)
    assert found.holds is True, found.sentences()
    assert {cell.batch for cell in found.measured} == {1, 2, 7, 9}
    assert {one.rows for one in found.invariances} == {9}


def test_every_row_is_in_every_size_and_the_hard_ones_are_among_them(pristine: Path) -> None:
    evidence = Evidence(inspect_bundle(pristine)[0])
    trials = make_trials(evidence, evidence.reference_session, None)
    assert trials.rows == 64
    assert trials.independent
    for size, batches in trials.batches.items():
        assert {len(batch.index) for batch in batches} == {size}
        assert set(np.concatenate([batch.index for batch in batches]).tolist()) == set(range(64))
        for batch in batches:
            assert (batch.inputs["input"] == trials.pool["input"][batch.index]).all()
    hard = evidence.goldens[1].inputs["input"]
    assert all(any((row == other).all() for other in trials.pool["input"]) for row in hard)


def test_the_middle_row_is_turned_to_each_place(pristine: Path) -> None:
    evidence = Evidence(inspect_bundle(pristine)[0])
    trials = make_trials(evidence, evidence.reference_session, None)
    for size in trials.sizes:
        at = {batch.index.tolist().index(32) for batch in trials.turned(size)}
        assert at == {0, size // 2, size - 1}


def test_inputs_without_a_common_batch_are_refused(pristine: Path) -> None:
    bundle = inspect_bundle(pristine)[0]
    (spec,) = bundle.manifest.inputs
    for shape in ((), (0, 1)):
        odd = replace(bundle, manifest=replace(bundle.manifest, inputs=(spec, replace(spec, shape=shape))))
        with pytest.raises(ParityError, match="no batch size in common"):
            make_trials(Evidence(odd), None, None)


@pytest.mark.parametrize(("again", "independent"), [(2e-9, True), (0.5, False), (math.nan, False)])
def test_a_row_near_zero_may_differ_by_the_rounding_of_the_others(again: float, independent: bool) -> None:
    single, pair = Batch({}, np.array([0])), Batch({}, np.array([0, 1]))
    answers = {1: ({"y": np.float32([[1e-9]])},), 2: ({"y": np.float32([[again], [1.0]])},)}
    trials = Trials({1: (single,), 2: (pair,)}, answers, {}, {}, {"x": np.zeros((2, 1))}, True, fixed=False)
    assert rows_are_independent(trials, None) is independent


# ------------------------------------------------------------------------------------------------- batch invariance


def placed(rows: list[list[float]]) -> list[tuple[Batch, dict[str, np.ndarray]]]:
    """Runs of single rows: [row, value]."""
    return [(Batch({}, np.array([int(row)])), {"y": np.array([[value]], np.float32)}) for row, value in rows]


def test_equal_rows_are_invariant() -> None:
    found = invariance(Cell("here"), placed([[0, 1.0], [1, 5.0], [0, 1.0]]), {"y": 1e-6}, (1, 2))
    assert (found.identical, found.holds, found.sentence()) == (True, True, "")
    assert found.rows == 2


def test_a_row_that_differs_within_the_limit_is_told_and_holds() -> None:
    found = invariance(Cell("here"), placed([[0, 1.0], [0, 1.0 + 2**-23]]), {"y": 1e-6}, (1, 2))
    assert (found.identical, found.holds) == (False, True)
    assert found.ulp == 1
    assert found.difference == 2.0**-23
    assert "1 ulp" in found.sentence()
    assert RuntimeMatrix((Cell("here"),), (found,)).holds is True


def test_rounding_of_a_number_near_zero_is_not_many_ulp() -> None:
    batch = Batch({}, np.array([0]))
    runs = [(batch, {"y": np.array([[1.0, tiny]], np.float32)}) for tiny in (1e-9, -1e-9)]
    found = invariance(Cell("here"), runs, {"y": 1e-6}, (1, 2))
    assert 0 < found.ulp < 0.02
    assert 1e-9 < found.difference < 3e-9


@pytest.mark.parametrize("value", [1.001, math.nan, math.inf])
def test_a_row_that_differs_beyond_the_limit_fails(value: float) -> None:
    found = invariance(Cell("here"), placed([[0, 1.0], [0, value]]), {"y": 1e-6}, (1, 2))
    assert found.holds is False
    assert "expected at most 1e-06" in found.sentence()
    assert RuntimeMatrix((Cell("here"),), (found,)).holds is False


def test_each_output_has_its_own_limit() -> None:
    batch = Batch({}, np.array([0]))
    first = {"y": np.array([[1.0]], np.float32), "z": np.array([[100.0]], np.float32)}
    second = {"y": np.array([[1.0]], np.float32), "z": np.array([[100.5]], np.float32)}
    third = {"y": np.array([[1.25]], np.float32), "z": np.array([[100.0]], np.float32)}
    assert invariance(Cell("here"), [(batch, first), (batch, second)], {"y": 0.1, "z": 1.0}, (1,)).holds is True
    for limits in ({"y": 0.1, "z": 1.0}, {"z": 1.0, "y": 0.1}):
        found = invariance(Cell("here"), [(batch, first), (batch, second), (batch, third)], limits, (1,))
        assert (found.holds, found.difference, found.limit) == (False, 0.25, 0.1)


def test_ulp_are_those_of_the_larger_number() -> None:
    one = np.array([1.0], np.float32)
    assert distance(one, np.nextafter(one, np.float32(2))) == (2.0**-23, 1.0)
    assert distance(np.array([0.0], np.float32), np.array([1e-45], np.float32))[1] == 1  # the smallest subnormal
    assert distance(np.array([1.0], np.float16), np.array([1.0 + 2**-10], np.float16))[1] == 1
    assert distance(np.array([np.nan, np.inf]), np.array([np.nan, np.inf])) == (0.0, 0.0)
    assert distance(np.array([-0.0]), np.array([0.0])) == (0.0, 0.0)
    assert distance(np.array([1]), np.array([4])) == (3.0, 3.0)
    assert distance(np.zeros((1, 2)), np.zeros((2, 1))) == (math.inf, math.inf)


# --------------------------------------------------------------------------------------------- CUDA, played by a CPU


class Played:
    """A session of the CPU that says it is CUDA's."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def play_cuda(monkeypatch: pytest.MonkeyPatch, bits: int = 24) -> list[bool]:
    """Let the CPU, with TF32's rounding where it is asked for, pass for CUDA; gives what tf32 was at each opening.

    bits: that CUDA keeps of the factors of products without TF32.
    """
    asked: list[bool] = []

    def opened(model: bytes, *, device: str, tf32: bool, **options: Any) -> Any:
        if device == "cpu":
            return open_session(model, device="cpu", **options)
        asked.append(tf32)
        if tf32 or bits < 24:
            model = in_tf32(onnx.ModelProto.FromString(model), 11 if tf32 else bits).SerializeToString()
        return Played(open_session(model, device="cpu", **options))

    monkeypatch.setattr(places_module, "open_session", opened)
    cuda = tuple(place for place in places_module.list_places() if place.device == "cuda")
    monkeypatch.setattr("bnfold.parity.runtimes.matrix.list_places", lambda: (*ONE_PLACE, *cuda))
    return asked


def test_tf32_is_judged_by_the_reference_in_tf32(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = play_cuda(monkeypatch)
    found = check(pristine)
    assert found.holds is True, found.sentences()
    assert asked == [False] * 4 + [True] * 4  # reference and folded model, optimisations off and all
    rounded = [cell for cell in found.measured if cell.tf32]
    plain = [cell for cell in found.measured if cell.tf32 is False]
    assert {cell.yardstick for cell in rounded} == {"the reference in the same place, optimisations off"}
    assert {cell.yardstick for cell in plain} == {"the reference on the CPU, optimisations off"}
    assert {cell.provider for cell in (*rounded, *plain)} == {"CUDAExecutionProvider"}
    for one, other in zip(rounded, plain, strict=True):
        assert one.worst is not None
        assert other.worst is not None
        assert one.worst.unfolded_rms > 100 * other.worst.unfolded_rms  # by the CPU's yardstick it could not hold
        assert one.worst.folded_rms > other.worst.rms_limit
    assert any("TF32 on" in note for note in found.notes)


@pytest.mark.parametrize("factor", [1.05, -1.0])
def test_a_wrong_fold_fails_in_tf32_too(
    folder: Path, mend: Callable, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    spoil(folder, scaled(factor), mend)
    play_cuda(monkeypatch)
    found = check(folder)
    assert {cell.holds for cell in found.measured if cell.tf32} == {False}


def lossy_cells(folder: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> list[Cell]:
    play_cuda(monkeypatch, bits)
    return [cell for cell in check(folder).measured if cell.tf32 is False]


def test_a_provider_that_is_less_exact_is_not_blamed_on_the_fold(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = lossy_cells(pristine, monkeypatch, 18)
    assert {cell.holds for cell in cells} == {True}
    assert all("this provider is less exact" in cell.sentence() for cell in cells)
    assert {cell.yardstick for cell in cells} == {"the reference in the same place, optimisations off"}


def test_a_provider_that_loses_half_of_the_digits_leaves_it_open(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = lossy_cells(pristine, monkeypatch, 8)
    assert {cell.holds for cell in cells} == {None}
    assert all("more than rounding explains" in cell.sentence() for cell in cells)


def test_a_wrong_fold_is_no_loss_of_the_provider(folder: Path, mend: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(folder, scaled(1.01), mend)
    assert {cell.holds for cell in lossy_cells(folder, monkeypatch, 18)} == {False}


def test_many_right_folds_hold_in_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_cuda(monkeypatch)
    for seed in range(6):
        found = check(build(tmp_path / str(seed), network("N", seed=seed)).path)
        assert found.holds is True, found.sentences()
