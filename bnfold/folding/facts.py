"""Facts: what an adapter proves about a traced graph, and all that the planner knows of it.

A graph is an immutable set of linears, norms, carriers and opaque nodes between named values. Constants are handles
(`Tensor`), so that describing a model of two gigabytes copies nothing. A norm's per-channel scale and shift are
expressions (`bnfold.folding.expressions`) over the constants of the source.

Adapters state only what they can prove. Whatever they cannot state is `Opaque`, and a norm beside it is kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from bnfold.folding.carriers import Rule, Window
from bnfold.folding.expressions import ONE, ZERO, Expr, Op, Tensor, div, leaves, mul, shape_of, sqrt, sub

Dim: TypeAlias = int | str | None  # a size, a symbol (equal symbols are equal sizes), or not known


@dataclass(frozen=True)
class Reason:
    """Why something may not be done: a stable upper-case code and one sentence for a person."""

    code: str
    detail: str


@dataclass(frozen=True)
class Statistics:
    """The parts of a batch norm, for those who need them apart (certificates, the fold map, drift)."""

    gamma: Expr
    beta: Expr
    mean: Expr
    variance: Expr
    eps: Expr


@dataclass(frozen=True)
class Step:
    """One elementwise operation by a constant, as the source wrote it: `x kind by`."""

    kind: Literal["add", "sub", "mul", "div"]
    by: Expr


@dataclass(frozen=True)
class Norm:
    """A fixed per-channel affine map `y = scale * x + shift`, one node of the source or several.

    `scale` and `shift` have shape (C,) or (). `axis` counts the channel axis of the input from the front; None
    means that scale and shift are scalars and fit any axis. `nodes` are the adapter's ids of the nodes that go away
    when the map is absorbed, in order. `steps` are those of a map written as add, sub, mul and div.
    `refusal`: it is not a fixed, finite affine map. `obstacle`: it is one, but may not be touched where it stands.
    `parameters` are the values that it reads besides its input, where its statistics are computed and not stored.
    """

    id: str
    name: str
    kind: str
    input: str
    output: str
    scale: Expr
    shift: Expr
    axis: int | None
    nodes: tuple[str, ...]
    statistics: Statistics | None = None
    steps: tuple[Step, ...] = ()
    refusal: Reason | None = None
    obstacle: Reason | None = None
    parameters: tuple[str, ...] = ()

    @property
    def is_elementwise(self) -> bool:
        """True for a map written as add, sub, mul and div, false for a norm operator of the framework."""
        return self.kind == ELEMENTWISE

    @property
    def is_norm(self) -> bool:
        """True when the report has a row for it: not for a bias alone, nor for a literal factor alone."""
        if not self.is_elementwise:
            return True
        return self.scale != ONE and (self.shift != ZERO or math.prod(shape_of(self.scale)) > 1)

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """The constants of the source that it is made of."""
        return tuple(dict.fromkeys(leaves(self.scale) + leaves(self.shift)))

    @property
    def label(self) -> str:
        """The norm as a sentence names it."""
        return f"{self.kind} '{self.name}'"


ELEMENTWISE = "Affine"


@dataclass(frozen=True)
class Linear:
    """Conv, ConvTranspose, Gemm, MatMul or Linear: `output = alpha * (weight . input) + beta * bias`.

    `out_first`: the weight is (O, I/g, *K); otherwise (I, O/g, *K), as ConvTranspose and an untransposed dense
    weight have it. `axis` is the axis of the channels in input and output, from the front; None when the rank is
    not known. `window`: of a convolution; None for a dense layer, which runs over the last axis. A convolution is
    transposed when it has a window and is not `out_first`.
    """

    id: str
    name: str
    kind: str
    input: str
    output: str
    weight: Tensor
    bias: Tensor | None
    out_first: bool
    groups: int
    channels: int
    axis: int | None
    alpha: float = 1.0
    beta: float = 1.0
    window: Window | None = None
    obstacle: Reason | None = None

    @property
    def label(self) -> str:
        """The linear as a sentence names it."""
        return f"{self.kind} '{self.name}'"

    @property
    def in_channels(self) -> int:
        """The number of input channels."""
        return self.weight.shape[1] * self.groups if self.out_first else self.weight.shape[0]

    @property
    def is_transposed(self) -> bool:
        """True for a transposed convolution."""
        return self.window is not None and not self.out_first


@dataclass(frozen=True)
class Carrier:
    """A node that an affine map may pass under the condition of its rule."""

    id: str
    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rule: Rule

    @property
    def label(self) -> str:
        """The carrier as a sentence names it."""
        return f"{self.kind} '{self.name}'"


@dataclass(frozen=True)
class Opaque:
    """A node of which nothing is known but what it reads and writes; `why` says it of a linear that is no fact.

    `measures`: values of which it reads the shape alone; they are no inputs.
    """

    id: str
    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    why: Reason | None = None
    measures: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The node as a sentence names it."""
        return f"{self.kind} '{self.name}'"


Node: TypeAlias = Linear | Norm | Carrier | Opaque

GRAPH_OUTPUT = "the graph output"


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order between named values.

    Values that hold the same data under two names (Identity, dropout in eval mode, contiguous) are one value here.
    `tensor_readers` counts, per `Tensor.key`, the uses of a constant anywhere in the source. `shapes`: of values, as
    far as they are known; a value that is missing has an unknown rank.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensor_readers: Mapping[Hashable, int]
    shapes: Mapping[str, tuple[Dim, ...]] = dataclasses.field(default_factory=dict)

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that writes a value."""
        return {name: node for node in self.nodes for name in written_by(node)}

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """Who reads a value: ids of nodes, and `GRAPH_OUTPUT` for a graph output."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            for name in read_by(node):
                found.setdefault(name, []).append(node.id)
        for name in self.outputs:
            found.setdefault(name, []).append(GRAPH_OUTPUT)
        return {name: tuple(ids) for name, ids in found.items()}

    @cached_property
    def by_id(self) -> Mapping[str, Node]:
        """Nodes by their id."""
        return {node.id: node for node in self.nodes}

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Every affine map that is still a node of its own."""
        return tuple(node for node in self.nodes if isinstance(node, Norm))

    def with_nodes(self, nodes: tuple[Node, ...]) -> Graph:
        """The same graph with other nodes."""
        return dataclasses.replace(self, nodes=nodes)

    def label(self, id: str) -> str:
        """A reader, as a sentence names it."""
        if id == GRAPH_OUTPUT:
            return id
        return self.by_id[id].label


def read_by(node: Node) -> tuple[str, ...]:
    """The values that a node reads."""
    match node:
        case Opaque() | Carrier():
            return node.inputs
        case Norm():
            return (node.input, *node.parameters)
        case Linear():
            return (node.input,)


def written_by(node: Node) -> tuple[str, ...]:
    """The values that a node writes."""
    return node.outputs if isinstance(node, Opaque | Carrier) else (node.output,)


def constant_axis(constant: Sequence[int], data: Sequence[int | None]) -> int | Literal["none"] | None:
    """The axis of the data along which a constant varies that is broadcast against it, from the front.

    constant, data: shapes, None where a size is not known. None: a scalar. "none": not proven, because the constant
    varies along several axes, or might broadcast the data up.
    """
    offset = len(data) - len(constant)
    if offset < 0 or 0 in constant:
        return "none"
    varying = [axis for axis, size in enumerate(constant) if size != 1]
    if not varying:
        return None
    return varying[0] + offset if len(varying) == 1 and data[varying[0] + offset] == constant[varying[0]] else "none"


def affine_step(kind: Literal["add", "sub", "mul", "div"], by: Expr) -> tuple[Expr, Expr]:
    """Scale and shift of `x kind by`."""
    match kind:
        case "add":
            return ONE, by
        case "sub":
            return ONE, Op("sub", (ZERO, by))
        case "mul":
            return by, ZERO
        case "div":
            return div(ONE, by), ZERO


def batch_norm(gamma: Expr, beta: Expr, mean: Expr, variance: Expr, eps: Expr) -> tuple[Expr, Expr]:
    """Scale and shift of batch norm in eval mode: gamma / sqrt(variance + eps), beta - scale * mean.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 2; ONNX BatchNormalization-15.
    """
    scale = div(gamma, sqrt(Op("add", (variance, eps))))
    return scale, sub(beta, mul(scale, mean))


def parent_name(tensors: tuple[Tensor, ...]) -> str:
    """The module that owns these constants by their qualified names ('layer1.bn'), or '' if no single one does.

    Names without a dot are passed over: exporters give such to what they made up themselves (a gamma of ones, say).
    """
    parents = {tensor.name.rpartition(".")[0] for tensor in tensors} - {""}
    return parents.pop() if len(parents) == 1 else ""
