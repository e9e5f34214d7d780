"""ONNX graphs built twice, in float32 and in float64, and the check that folding leaves what they compute.

The oracle is the *unfolded* float64 graph in onnx.reference. The folded float64 graph must agree with it to the last
few bits there; the folded float32 graph must agree with it, as far as float32 goes, in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import bnfold
from bnfold.api import FoldResult
from bnfold.runtime import open_session, run

FLOAT, DOUBLE, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16
NUMPY: dict[int, Any] = {FLOAT: np.float32, DOUBLE: np.float64, HALF: np.float16, BFLOAT: ml_dtypes.bfloat16}


class Builder:
    """A graph under construction; methods give the name of the value that they add.

    Numbers are drawn on a coarse grid that every dtype holds exactly, so that graphs of two dtypes are the same
    function. Statistics are far from their defaults: gamma of both signs, sometimes zero.
    """

    def __init__(self, elem: int = FLOAT, *, opset: int = 17, ir_version: int = 9, seed: int = 0) -> None:
        self.elem, self.opset, self.ir_version = elem, opset, ir_version
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.infos: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains: dict[str, int] = {}
        self.outputs: dict[str, int] = {}  # element types and shapes of graph outputs that are not inferred
        self.shapes: dict[str, Sequence[Any]] = {}
        self.count = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def input(self, *shape: Any, name: str = "x", elem: int | None = None) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem or self.elem, shape))
        return name

    def values(self, *shape: int, positive: bool = False) -> Any:
        numbers = np.round(self.rng.normal(size=shape) * 32.0) / 32.0
        return np.clip(np.abs(numbers), 0.5, 3.0) if positive else numbers

    def tensor(self, values: Any, name: str = "", *, elem: int | None = None) -> onnx.TensorProto:
        array = np.asarray(values)
        if array.dtype.kind == "f":
            array = array.astype(NUMPY[elem or self.elem])
        return numpy_helper.from_array(array, name)

    def const(self, values: Any, name: str = "", *, elem: int | None = None) -> str:
        name = name or self.fresh("c")
        self.initializers.append(self.tensor(values, name, elem=elem))
        return name

    def node(self, op: str, *inputs: str, out: str = "", name: str | None = None, **attributes: Any) -> str:
        out = out or self.fresh(op.lower())
        self.nodes.append(
            helper.make_node(op, inputs, [out], name=f"node_{out}" if name is None else name, **attributes)
        )
        return out

    def conv(self, x: str, channels: tuple[int, int], kernel: Sequence[int] = (3,), **given: Any) -> str:
        """channels: (in, out). bias=False leaves the bias out."""
        groups = given.get("group", 1)
        weight = self.const(self.values(channels[1], channels[0] // groups, *kernel))
        bias = [self.const(self.values(channels[1]))] if given.pop("bias", True) else []
        return self.node("Conv", x, weight, *bias, **given)

    def statistics(self, channels: int) -> list[Any]:
        """gamma, beta, mean, variance."""
        gamma = self.values(channels)
        gamma[self.rng.uniform(size=channels) < 0.15] = 0.0
        return [gamma, self.values(channels), self.values(channels), self.values(channels, positive=True)]

    def bn(self, x: str, channels: int, out: str = "", **given: Any) -> str:
        given.setdefault("epsilon", 1e-3)
        names = [self.const(part) for part in self.statistics(channels)]
        return self.node("BatchNormalization", x, *names, out=out, **given)

    def model(self, *outputs: str, check: bool = True) -> onnx.ModelProto:
        results = [
            helper.make_tensor_value_info(name, self.outputs.get(name, self.elem), self.shapes.get(name))
            for name in outputs
        ]
        stored = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initializers]
        inputs = self.inputs + (stored if self.ir_version < 4 else [])
        graph = helper.make_graph(self.nodes, "graph", inputs, results, self.initializers, value_info=self.infos)
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        model = helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version, functions=self.functions)
        unknown = [value for value in model.graph.output if not value.type.tensor_type.HasField("shape")]
        if unknown:  # the checker wants a shape
            inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
            for value in unknown:
                value.CopyFrom(next((t for t in stored if t.name == value.name), inferred[value.name]))
        if check:
            onnx.checker.check_model(model)
        return model


class ConvTranspose(OpRun):  # the evaluator knows an operator by the name of its class
    """The evaluator's own has no groups."""

    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **given: Any) -> tuple[Any]:
        rank = x.ndim - 2
        pads = list(given.get("pads") or [0] * 2 * rank)
        convolve = {1: torch.nn.functional.conv_transpose1d, 2: torch.nn.functional.conv_transpose2d}.get(
            rank, torch.nn.functional.conv_transpose3d
        )
        found = convolve(
            torch.tensor(x), torch.tensor(w), None if b is None else torch.tensor(b),
            stride=list(given.get("strides") or [1] * rank), groups=given.get("group") or 1,
            dilation=list(given.get("dilations") or [1] * rank),
            output_padding=list(given.get("output_padding") or [0] * rank),
        ).numpy()  # fmt: skip
        cut = tuple(slice(pads[at], found.shape[2 + at] - pads[rank + at]) for at in range(rank))
        return (found[(slice(None), slice(None), *cut)],)


class BatchNormalization(OpRun):
    """The evaluator's own normalises by the batch before opset 14, and fails before opset 9."""

    op_domain = ""

    def _run(self, x: Any, *parts: Any, **given: Any) -> tuple[Any]:
        scale, bias, mean, variance = (torch.tensor(part) for part in parts)
        epsilon = float(np.float32(1e-5)) if given.get("epsilon") is None else given["epsilon"]
        if given.get("training_mode"):
            raise NotImplementedError
        return (torch.nn.functional.batch_norm(torch.tensor(x), mean, variance, scale, bias, eps=epsilon).numpy(),)


def evaluate(model: onnx.ModelProto, inputs: dict[str, Any]) -> list[Any]:
    return list(ReferenceEvaluator(model, new_ops=[ConvTranspose, BatchNormalization]).run(None, inputs))


def close(found: Sequence[Any], truth: Sequence[Any], bound: float) -> bool:
    """Finite, of one shape, and no further apart than a share of the largest value."""
    if len(found) != len(truth):
        return False
    for a, b in zip(found, truth, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
            return False
        if np.abs(a - b).max(initial=0.0) > bound * (np.abs(b).max(initial=0.0) + 1e-3):
            return False
    return True


def feeds(model: onnx.ModelProto, seed: int = 5) -> dict[str, Any]:
    """Random inputs; a free dimension is 2."""
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    result = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        of = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else 2 for dim in of.shape.dim]
        numbers = np.round(rng.normal(size=shape) * 64.0) / 64.0
        result[value.name] = numbers.astype(helper.tensor_dtype_to_np_dtype(of.elem_type))
    return result


def names_of(values: Any) -> list[str]:
    return [value.name for value in values]


def fold_of(model: onnx.ModelProto, **given: Any) -> FoldResult:
    """bnfold.fold of a ModelProto; the source must come out byte for byte as it went in, and the result be sound."""
    before = model.SerializeToString(deterministic=True)
    result = bnfold.fold(model, **given)
    assert model.SerializeToString(deterministic=True) == before, "the source was changed"
    onnx.checker.check_model(result.model, full_check=True)
    assert names_of(result.model.graph.output) == names_of(model.graph.output)
    stored = {tensor.name for tensor in model.graph.initializer}
    wanted = [value for value in names_of(model.graph.input) if value not in stored or model.ir_version >= 4]
    assert [name for name in names_of(result.model.graph.input) if name in wanted] == wanted
    return result


def broken(result: FoldResult, tensor: str) -> Iterator[onnx.ModelProto]:
    """The folded model with one channel (or column) of a folded tensor off by a little; every such model."""
    (stored,) = [found for found in result.model.graph.initializer if found.name == tensor]
    for axis in range(min(2, len(stored.dims))):
        for channel in range(stored.dims[axis]):
            model = onnx.ModelProto()
            model.CopyFrom(result.model)
            array = numpy_helper.to_array(stored).copy()
            array[(slice(None),) * axis + (channel,)] += 0.05
            (found,) = [found for found in model.graph.initializer if found.name == tensor]
            found.CopyFrom(numpy_helper.from_array(array, tensor))
            yield model


Build = Callable[[Builder], Any]


def built(build: Build, elem: int, **given: Any) -> onnx.ModelProto:
    builder = Builder(elem, **given)
    outputs = build(builder)
    return builder.model(*((outputs,) if isinstance(outputs, str) else outputs))


def check(build: Build, *, runtime: bool = True, **given: Any) -> FoldResult:
    """Fold the graph in both dtypes and compare all that they compute; gives the fold of the float32 graph.

    Each folded tensor is broken in turn, and the comparison must see it.
    """
    wide, low = built(build, DOUBLE, **given), built(build, FLOAT, **given)
    inputs = feeds(wide)
    truth = evaluate(wide, inputs)
    assert all(np.asarray(part).size for part in truth)
    folded = fold_of(wide)
    assert close(evaluate(folded.model, inputs), truth, 1e-11), "the folded float64 graph computes something else"
    for entry in folded.fold_map:
        # Not in each: a ReLU or a gamma of zero behind a channel can hide it.
        seen = (not close(evaluate(model, inputs), truth, 1e-11) for model in broken(folded, entry["tensor"]))
        assert any(seen), "the check sees nothing"
    result = fold_of(low)
    assert outcomes(result) == outcomes(folded)
    if runtime:
        session = open_session(result.model.SerializeToString(), optimise=False)
        found = list(run(session, {name: array.astype(np.float32) for name, array in inputs.items()}).values())
        assert close(found, truth, 2e-5), "the folded float32 graph computes something else in ONNX Runtime"
    return result


def outcomes(result: FoldResult) -> list[tuple[str, str]]:
    return [(row.outcome, row.reason) for row in result.report.norms]


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


FOLDED = [("folded", "")]
