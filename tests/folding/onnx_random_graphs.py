"""Random ONNX graphs: linears, norms, carriers and branches in any order, in every spelling from opset 9 on.

A graph grows from its inputs; each node is run in float64 as it is added, so that shapes need no second calculus here,
and what does not fit is taken back. What picks is hypothesis (then a failure shrinks) or a seeded generator (then a
failure has a number to replay).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from facts_graphs import Chooser
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_networks import DOUBLE, FLOAT, HALF, NUMPY

from bnfold.parity.float64_operators import OPERATORS

OPSETS = (9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25)
IR_VERSIONS = {9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
LARGEST = 4096  # elements of a value


class Misfit(Exception):
    """What was to be added does not fit; the graph is as it was before."""


@dataclass(frozen=True)
class Sample:
    """A model and inputs by name: the first fit its sizes, the others may be of sizes that it cannot take."""

    model: onnx.ModelProto
    inputs: tuple[dict[str, Any], ...]


Part = Callable[["Growing", str], Sequence[str]]
"""Puts something behind a value; gives the values that may be built on. Raises Misfit."""


class Growing:
    """A graph under construction. data: what each value is in float64, on the first inputs."""

    def __init__(self, chooser: Chooser, numbers: int) -> None:
        self.pick = chooser.pick
        self.rng = np.random.default_rng(numbers)
        self.opset = self.pick(OPSETS)
        self.elem = self.pick((FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, DOUBLE, HALF))
        self.free_batch = self.pick((True, True, False))
        self.free_space = self.pick((False, False, True))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[tuple[str, tuple[int, ...]]] = []
        self.data: dict[str, Any] = {}
        self.constants: set[str] = set()
        self.values: list[str] = []  # to build on
        self.reusable: dict[Any, list[Any]] = {}  # weights and statistics that another node may share
        self.count = 0

    # What a part is made of

    def chance(self, one_in: int) -> bool:
        """True once in so many times; what it shrinks to is False."""
        return self.pick((False,) * (one_in - 1) + (True,))

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def shape(self, x: str) -> tuple[int, ...]:
        return tuple(self.data[x].shape)

    def input(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append((name, shape))
        self.data[name] = self.rng.normal(size=shape)
        self.values.append(name)
        return name

    def const(self, values: Any, stem: str = "c", *, narrow: bool = True) -> str:
        """A stored tensor, now and then as a Constant node. narrow: floats are of the graph's dtype."""
        array = np.asarray(values)
        if narrow and array.dtype.kind == "f":
            array = array.astype(NUMPY[self.elem])
        name = self.fresh(stem)
        tensor = numpy_helper.from_array(array, name)
        if self.chance(12):
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        self.data[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
        self.constants.add(name)
        return name

    def integers(self, *values: int) -> str:
        return self.const(np.asarray(values, np.int64), "i")

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and run it; gives its first output."""
        return self.several(op, *inputs, outputs=outputs, **attributes)[0]

    def several(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        given = {key: value for key, value in attributes.items() if value is not None}
        names = [self.fresh(op.lower()) for _ in range(outputs)]
        name = "" if self.chance(5) else f"node_{names[0]}"
        node = helper.make_node(op, inputs, names, name=name, **given)
        for out, found in zip(names, self._run(node), strict=True):
            found = np.asarray(found)
            if not 0 < found.size <= LARGEST or (found.dtype.kind == "f" and not np.abs(found).max() < 1e3):
                raise Misfit(f"{op} gives {found.shape}")
            self.data[out] = found
        self.nodes.append(node)
        return names

    def _run(self, node: onnx.NodeProto) -> list[Any]:
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(self.data[name].dtype), None)
            for name in dict.fromkeys(node.input) if name
        ]  # fmt: skip
        results = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "one", infos, results)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        feeds = {info.name: self.data[info.name] for info in infos}
        try:
            with np.errstate(all="ignore"):
                return list(ReferenceEvaluator(model, new_ops=list(OPERATORS)).run(None, feeds))
        except Exception as problem:  # the evaluator raises whatever numpy raises
            raise Misfit(f"{node.op_type}: {problem}") from problem

    # Growing

    def try_part(self, part: Part, x: str) -> bool:
        """Put a part behind a value, or leave the graph as it was."""
        before = len(self.nodes), len(self.initializers), set(self.data), len(self.inputs), len(self.values)
        stored = {key: list(found) for key, found in self.reusable.items()}
        try:
            self.values += part(self, x)
        except Misfit:
            del self.nodes[before[0] :], self.initializers[before[1] :]
            del self.inputs[before[3] :], self.values[before[4] :]
            self.reusable = stored
            for name in set(self.data) - before[2]:
                del self.data[name]
                self.constants.discard(name)
            return False
        return True

    @property
    def read(self) -> set[str]:
        return {name for node in self.nodes for name in node.input}

    def ends(self) -> list[str]:
        read = self.read
        return [name for name in self.values if name not in read]

    def somewhere(self) -> str:
        """A value to go on from: mostly one that nobody reads yet."""
        ends = self.ends()
        if ends and not self.chance(6):
            return self.pick(ends[-2:])
        made = [name for name in self.data if name not in self.constants and self.data[name].dtype.kind == "f"]
        return self.pick(made[-6:])

    def sample(self) -> Sample:
        inputs = [{name: np.array(self.data[name]) for name, _ in self.inputs}]
        inputs += [
            {name: self.rng.normal(size=self._other(shape, batch)) for name, shape in self.inputs} for batch in (1, 3)
        ]
        dtype = NUMPY[self.elem]
        return Sample(
            self._model(), tuple({key: value.astype(dtype) for key, value in feed.items()} for feed in inputs)
        )

    def _other(self, shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
        grown = [size + batch if self.free_space else size for size in shape[2:]] if len(shape) > 2 else []
        return (batch if self.free_batch else shape[0], *shape[1:2], *grown)

    def _declared(self, shape: tuple[int, ...]) -> list[Any]:
        space = "DHW"[-len(shape[2:]) :] if len(shape) > 2 else ""
        free = [axis if self.free_space else size for axis, size in zip(space, shape[2:], strict=True)]
        return ["N" if self.free_batch else shape[0], *shape[1:2], *free]

    def _model(self) -> onnx.ModelProto:
        made = [name for name in self.data if name not in self.constants and self.data[name].dtype.kind == "f"]
        read = self.read
        produced = {name for node in self.nodes for name in node.output}
        outputs = [name for name in made if name in produced and name not in read]
        if self.chance(4):
            outputs.append(self.pick([name for name in made if name in produced]))
        if self.chance(40):
            stored = [t.name for t in self.initializers if t.data_type == self.elem and t.dims]
            outputs += stored[-1:]
        outputs = list(dict.fromkeys(outputs))
        infos = [helper.make_tensor_value_info(name, self.elem, [None] * self.data[name].ndim) for name in outputs]
        inputs = [helper.make_tensor_value_info(name, self.elem, self._declared(shape)) for name, shape in self.inputs]
        last = self.initializers[-1] if self.initializers else None
        if self.chance(40) and last is not None and not last.name.startswith("scales"):  # a caller may override it
            inputs.append(helper.make_tensor_value_info(last.name, last.data_type, last.dims))
        graph = helper.make_graph(self.nodes, "graph", inputs, infos, self.initializers)
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSIONS.get(self.opset, 12))
        onnx.checker.check_model(model, full_check=True)
        if self.chance(4):
            model = onnx.shape_inference.infer_shapes(model)
        return model


def grow(chooser: Chooser, numbers: int) -> Sample:
    """A random graph. numbers: the seed of its weights and statistics.

    Where the checker infers another shape than the operators give (windows of a pool that begin in what ceil_mode
    adds), the next one is taken.
    """
    while True:
        g = _grown(chooser, numbers)
        try:
            return g.sample()
        except onnx.shape_inference.InferenceError:
            continue


def _grown(chooser: Chooser, numbers: int) -> Growing:
    from onnx_random_blocks import parts_behind

    g = Growing(chooser, numbers)
    _start(g)
    wanted, tried = g.pick(range(2, 10)), 0
    while wanted and tried < 30:
        tried += 1
        x = g.somewhere()
        wanted -= g.try_part(g.pick(parts_behind(g, x)), x)
    if not g.nodes:
        g.try_part(lambda g, x: [g.node("Relu", x)], g.values[0])
    return g


def _start(g: Growing) -> None:
    rank = g.pick((4, 4, 4, 4, 3, 2, 5))
    channels = g.pick((4, 6, 2))
    size = g.pick((4, 6, 5)) if rank < 5 else g.pick((3, 4))
    g.input(2, channels, *[size, g.pick((size, size, size + 1))][: rank - 2], *[size] * (rank - 4))
