"""Running error analysis of a stretch of a graph, element by element: how far rounding may take it from the truth.

Of every value two arrays are known: `size`, at least as large as the exact value, and `error`, at least as large as the
distance of the computed value from it (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 3.1 to
3.3). Each operator maps them onwards by a rule of its own. What has no rule raises ParityError, which names it: the
runtime states no accuracy for exp, erf or tanh, nor for the coordinates of an interpolation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import helper

from bnfold.errors import ParityError
from bnfold.parity.local.bounds import Rounding
from bnfold.parity.oracle import run_float64, run_values
from bnfold.parity.weights.exact import FORMATS

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class State:
    """What is known of a value. value: of a constant, exactly in float64 or integers; None for data."""

    size: F64
    error: F64
    value: Array | None = None

    @property
    def most(self) -> F64:
        """At least as large as the computed value."""
        return np.asarray(self.size + self.error)

    @staticmethod
    def of(value: Array, error: F64 | None = None, *, is_data: bool = False) -> State:
        """A constant known up to `error`, or data that are known exactly."""
        wide = value.astype(np.float64) if value.dtype.kind not in "iub" else value
        size = np.abs(wide.astype(np.float64))
        return State(size, np.zeros_like(size) if error is None else error, None if is_data else wide)


@dataclass(frozen=True)
class Step:
    """A node with the state of what it reads (None: left out), the arithmetic, and the opsets of its model."""

    node: onnx.NodeProto
    inputs: tuple[State | None, ...]
    by: Rounding
    opsets: Sequence[onnx.OperatorSetIdProto]

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute's value; the operator's default where it is not written."""
        found = next((a for a in self.node.attribute if a.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def data(self, at: int = 0) -> State:
        """An input that must be there."""
        found = self.inputs[at] if at < len(self.inputs) else None
        if found is None:
            raise self.unbounded("has an input missing")
        return found

    def constant(self, at: int) -> tuple[Array, F64]:
        """An input that must be a constant: its value and error."""
        found = self.data(at)
        if found.value is None:
            raise self.unbounded("takes what is computed from data where a constant is expected")
        return found.value, found.error

    def apply(self, *arrays: Array | None, drop: Sequence[str] = ()) -> list[F64]:
        """The operator in float64 on other inputs. drop: attributes to leave at their defaults."""
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        del node.input[:], node.attribute[:]
        node.attribute.extend(a for a in self.node.attribute if a.name not in drop)
        feeds = {f"i{at}": array for at, array in enumerate(arrays) if array is not None}
        node.input.extend(f"i{at}" if array is not None else "" for at, array in enumerate(arrays))
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ]
        wanted = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "step", inputs, wanted)
        found = run_float64(helper.make_model(graph, opset_imports=self.opsets), feeds)
        return [np.asarray(found[name]) for name in node.output if name]

    def unbounded(self, why: str) -> ParityError:
        """The error that says why there is no bound."""
        return ParityError(f"{self.node.op_type} '{self.node.output[0]}' {why}")


Rule: TypeAlias = Callable[[Step], list[State]]


def analyse(
    nodes: Sequence[onnx.NodeProto], known: Mapping[str, State], target: str, by: Rounding,
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> State:  # fmt: skip
    """The state of a value behind some nodes. known: of what they read from outside, constants included.

    Raises ParityError for an operator that has no rule, or a rule that does not apply.
    """
    from bnfold.parity.local.running_rules import RULES

    states = dict(known)
    with np.errstate(all="ignore"):
        for node in nodes:
            inputs = tuple(states.get(name) for name in node.input)
            step = Step(node, inputs, by, opsets)
            if any(name and name not in states for name in node.input):
                raise step.unbounded("reads a value for which there is no rule of rounding")
            plain = [state.value for state in inputs if state is not None]
            rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if node.op_type == "Shape" and inputs[0] is not None:
                results = [State.of(value) for value in _plainly(step, [np.zeros(inputs[0].size.shape)])]
            elif all(value is not None and value.dtype.kind in "iub" for value in plain):
                results = [State.of(value) for value in _plainly(step, [state.value for state in _given(inputs)])]
            elif rule is None:
                raise step.unbounded("has no rule of rounding: the runtime states no accuracy for it")
            else:
                results = rule(step)
            states |= dict(zip((name for name in node.output if name), results, strict=False))
    return states[target]


def _given(inputs: Sequence[State | None]) -> list[State]:
    return [state for state in inputs if state is not None]


def _plainly(step: Step, arrays: Sequence[Array | None]) -> list[Array]:
    """Whole numbers, computed as they are."""
    node = step.node
    feeds = {name: array for name, array in zip((n for n in node.input if n), arrays, strict=True) if array is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    names = [name for name in node.output if name]
    graph = helper.make_graph([node], "step", inputs, [onnx.ValueInfoProto(name=name) for name in names])
    found = run_values(helper.make_model(graph, opset_imports=step.opsets), feeds, names)
    return [found[name] for name in names]


def rounded_once(exact: F64, dtype: str) -> State:
    """A constant that a fold made: its exact values, each stored as the nearest number of a dtype."""
    form = FORMATS[dtype]
    size = np.abs(exact)
    error = np.where(size < 2.0**form.least_exponent, form.smallest / 2, size * form.unit_roundoff)
    return State(size, np.where(size == 0, 0.0, error), exact)
