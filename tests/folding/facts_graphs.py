"""Random graphs of facts: linears, norms, carriers and branches in any order, with random statistics.

A graph grows from its input: each step picks a value that is there and puts something behind it. What picks is
hypothesis (then a failure shrinks) or a seeded generator (then a failure has a number to replay).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from bnfold.folding.carriers import (
    Activation,
    Concat,
    Pad,
    Pool,
    Reshape,
    Resize,
    Rule,
    Select,
    Shuffle,
    Split,
    Sum,
    Transpose,
    Window,
)  # fmt: skip
from bnfold.folding.expressions import Leaf, Scalar, Tensor
from bnfold.folding.facts import (
    ELEMENTWISE,
    Carrier,
    Dim,
    Graph,
    Linear,
    Node,
    Norm,
    Opaque,
    Statistics,
    Step,
    affine_step,
    batch_norm,
)  # fmt: skip

T = TypeVar("T")


class Chooser(Protocol):
    """Picks one of some things."""

    def pick(self, options: Sequence[T]) -> T: ...


class Seeded:
    """Picks by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, options: Sequence[T]) -> T:
        return self._random.choice(options)


class Drawn:
    """Picks by hypothesis."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self._draw = draw

    def pick(self, options: Sequence[T]) -> T:
        from hypothesis import strategies as st

        return options[self._draw(st.integers(0, len(options) - 1))]


class Sample:
    """A graph with what its facts do not say, inputs to run it on, and how it came about."""

    def __init__(self, graph: Graph, beside: dict[str, Any], inputs: list[dict[str, Any]]) -> None:
        self.graph = graph
        self.beside = beside
        self.inputs = inputs


def grow(chooser: Chooser, numbers: int) -> Sample:
    """A random graph. numbers: the seed of its weights and statistics."""
    return _Growing(chooser, numbers).sample()


def tensor(name: str, values: Any) -> Tensor:
    array = np.asarray(values, np.float64)
    return Tensor(name, "float64", array.shape, name, lambda: array)


class _Growing:
    def __init__(self, chooser: Chooser, numbers: int) -> None:
        self.pick = chooser.pick
        self.rng = np.random.default_rng(numbers)
        self.nodes: list[Node] = []
        self.beside: dict[str, Any] = {}
        self.uses: dict[Any, int] = {}
        size = self.pick((4, 6))
        self.is_dynamic = self.pick((False, True))
        # The sizes that the graph runs with, by value: (C, H, W) or (F,).
        self.sizes: dict[str, tuple[int, ...]] = {"x": (self.pick((2, 4)), size, size)}
        self.hidden: dict[str, tuple[int, ...]] = {}  # values behind which nothing more is put
        self.shared: list[tuple[Tensor, Window | None, int]] = []
        self.statistics: list[tuple[int, Statistics]] = []

    def sample(self) -> Sample:
        for _ in range(self.pick(range(2, 10))):
            self._step()
        read = {name for node in self.nodes for name in _read(node)}
        ends = [name for name in self.sizes if name not in read and name != "x"] or ["x"]
        if self.pick((False, False, False, True)):
            ends.append(self.pick(list(self.sizes)))
        outputs = tuple(dict.fromkeys(ends))
        c, h, w = self.sizes["x"]
        inputs = [{"x": self.rng.normal(size=(2, c, h, w))}]
        self.sizes.update(self.hidden)
        shapes = {name: self._facts(name) for name in self.sizes}
        return Sample(Graph(tuple(self.nodes), ("x",), outputs, dict(self.uses), shapes), self.beside, inputs)

    def _facts(self, name: str) -> tuple[Dim, ...]:
        size = self.sizes[name]
        if len(size) < 3 or not self.is_dynamic:
            return ("N", *size)
        return ("N", *size[:-2], f"h{size[-2]}", f"w{size[-1]}")

    # What can be put behind a value

    def _step(self) -> None:
        names = list(self.sizes)
        read = {name for node in self.nodes for name in _read(node)}
        ends = [name for name in names if name not in read]
        value = self.pick(ends) if ends and self.pick((True, True, True, True, False)) else self.pick(names[-4:])
        if len(self.sizes[value]) == 1:
            self.pick((self._dense, self._norm, self._norm, self._activation, self._residual, self._opaque))(value)
            return
        kinds: tuple[Callable[[str], Any], ...] = (
            self._conv, self._conv, self._conv_norm, self._conv_norm, self._norm, self._norm, self._norm, self._affine,
            self._activation, self._concat, self._residual, self._residual, self._parallel, self._parallel, self._pool,
            self._layout, self._space, self._split, self._select, self._flatten, self._transposed, self._opaque,
        )  # fmt: skip
        self.pick(kinds)(value)

    def _id(self, kind: str) -> str:
        return f"{kind}{len(self.nodes)}"

    def _window(self, kernel: int, *, same: bool = False) -> Window:
        if same:
            pad = (kernel - 1) // 2
            return Window((kernel,) * 2, (1, 1), (1, 1), ((pad, pad),) * 2)
        begin, end = self.pick(((1, 1), (0, 0), (1, 0), (0, 2)))
        dilation, stride = self.pick((1, 1, 1, 2)) if kernel > 1 else 1, self.pick((1, 1, 1, 2))
        return Window((kernel,) * 2, (stride,) * 2, (dilation,) * 2, ((begin, end), (begin, begin)))

    def _conv(self, x: str, outputs: int | None = None, window: Window | None = None) -> str:
        c, h, w = self.sizes[x]
        outputs = outputs or self.pick((c, 2, 4))
        window = window or self._window(self.pick((1, 3)), same=self.pick((True, True, False)))
        sizes = [_conv_size(n, window, axis) for axis, n in enumerate((h, w))]
        if min(sizes) < 1:
            return x
        groups = self.pick([g for g in (1, 1, 2, c) if c % g == 0 and outputs % g == 0])
        id = self._id("conv")
        known = [weight for weight, old, g in self.shared if old == window and g == groups]
        fitting = [weight for weight in known if weight.shape == (outputs, c // groups, *window.kernel)]
        is_shared = bool(fitting) and self.pick((False, True))
        weight = fitting[0] if is_shared else self._tensor(f"{id}.weight", (outputs, c // groups, *window.kernel))
        self.shared.append((weight, window, groups))
        self.nodes.append(self._linear(id, "Conv", x, weight, outputs, True, groups, 1, window))
        self.sizes[id] = (outputs, *sizes)
        return id

    def _transposed(self, x: str) -> str:
        c, h, w = self.sizes[x]
        outputs = self.pick((2, 4))
        groups = self.pick([g for g in (1, 2) if c % g == 0 and outputs % g == 0])
        kernel, stride = self.pick(((1, 1), (2, 2), (3, 1), (3, 2)))
        extra, pad = (self.pick((0, 1)) if stride == 2 else 0), self.pick((0, 1)) if kernel == 3 else 0
        window = Window((kernel,) * 2, (stride,) * 2, (1, 1), ((pad, pad),) * 2, (extra,) * 2)
        sizes = [(n - 1) * stride + kernel + extra - 2 * pad for n in (h, w)]
        if max(sizes) > 14 or min(sizes) < 1:
            return x
        id = self._id("up")
        weight = self._tensor(f"{id}.weight", (c, outputs // groups, kernel, kernel))
        self.nodes.append(self._linear(id, "ConvTranspose", x, weight, outputs, False, groups, 1, window))
        self.sizes[id] = (outputs, *sizes)
        return id

    def _dense(self, x: str) -> str:
        (features,) = self.sizes[x]
        outputs, out_first, id = self.pick((3, 5)), self.pick((True, False)), self._id("dense")
        weight = self._tensor(f"{id}.weight", (outputs, features) if out_first else (features, outputs))
        self.nodes.append(self._linear(id, "Gemm", x, weight, outputs, out_first, 1, 1, None))
        self.sizes[id] = (outputs,)
        return id

    def _linear(
        self, id: str, kind: str, x: str, weight: Tensor, outputs: int, out_first: bool, groups: int, axis: int,
        window: Window | None,
    ) -> Linear:  # fmt: skip
        bias = self._tensor(f"{id}.bias", (outputs,)) if self.pick((True, False)) else None
        alpha, beta = self.pick(((1.0, 1.0), (1.0, 1.0), (0.5, -2.0)))
        return Linear(id, id, kind, x, id, weight, bias, out_first, groups, outputs, axis, alpha, beta, window)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        made = tensor(name, self.rng.normal(size=shape))
        return self._used(made)

    def _used(self, made: Tensor) -> Tensor:
        self.uses[made.key] = self.uses.get(made.key, 0) + 1
        return made

    def _conv_norm(self, x: str) -> str:
        return self._norm(self._conv(x))

    def _norm(self, x: str) -> str:
        channels, id = self.sizes[x][0], self._id("norm")
        known = [statistics for size, statistics in self.statistics if size == channels]
        statistics = known[-1] if known and self.pick((False, False, True)) else self._new_statistics(id, channels)
        self.statistics.append((channels, statistics))
        s = statistics
        scale, shift = batch_norm(s.gamma, s.beta, s.mean, s.variance, s.eps)
        self.nodes.append(Norm(id, id, "BatchNorm", x, id, scale, shift, 1, (id,), statistics=statistics))
        self.sizes[id] = self.sizes[x]
        return id

    def _new_statistics(self, id: str, channels: int) -> Statistics:
        gamma = self.rng.normal(size=channels)
        if self.pick((False, True)):
            gamma = np.abs(gamma) + 0.1
        elif self.pick((False, False, True)):
            gamma[0] = 0.0
        beta = np.zeros(channels) if self.pick((False, False, True)) else self.rng.normal(size=channels)
        mean = beta * 0 if not beta.any() else self.rng.normal(size=channels)
        variance = self.rng.uniform(0.05, 3, size=channels)
        parts = [
            Leaf(self._used(tensor(f"{id}.{k}", v))) for k, v in zip("gbmv", (gamma, beta, mean, variance), strict=True)
        ]
        return Statistics(*parts, Scalar(self.pick((1e-3, 1e-5, 0.0))))

    def _affine(self, x: str) -> str:
        """One step of arithmetic by a constant, for each channel or for all."""
        channels, id = self.sizes[x][0], self._id("step")
        kind = self.pick(("add", "sub", "mul", "div"))
        is_vector = self.pick((True, True, False))
        values = self.rng.uniform(0.3, 2, size=channels) * self.rng.choice((-1, 1), size=channels)
        by = (
            Leaf(self._used(tensor(f"{id}.by", values)))
            if is_vector
            else Scalar(self.pick((0.5, 2.0, 0.0 if kind in ("add", "sub") else 1.0)))
        )
        scale, shift = affine_step(kind, by)
        axis = 1 if is_vector else None
        self.nodes.append(Norm(id, id, ELEMENTWISE, x, id, scale, shift, axis, (id,), steps=(Step(kind, by),)))
        self.sizes[id] = self.sizes[x]
        return id

    def _carrier(self, kind: str, inputs: Sequence[str], rule: Rule, *sizes: tuple[int, ...], does: Any = None) -> str:
        id = self._id(kind)
        names = (id,) if len(sizes) == 1 else tuple(f"{id}:{at}" for at in range(len(sizes)))
        self.nodes.append(Carrier(id, id, kind, tuple(inputs), names, rule))
        self.sizes.update(zip(names, sizes, strict=True))
        if does is not None:
            self.beside[id] = does
        return names[-1]

    def _activation(self, x: str) -> str:
        function = self.pick(
            ("relu", "relu", "relu", "leaky_relu", "relu6", "elu", "silu", "gelu", "hardswish", "mish")
        )
        slope = 0.25 if function == "leaky_relu" else None
        return self._carrier("act", (x,), Activation(function, slope), self.sizes[x])

    def _opaque(self, x: str) -> str:
        id = self._id("opaque")
        self.nodes.append(Opaque(id, id, "Tanh", (x,), (id,)))
        self.beside[id] = np.tanh
        self.sizes[id] = self.sizes[x]
        return id

    def _alike(self, x: str) -> list[str]:
        return [name for name, size in self.sizes.items() if size == self.sizes[x]]

    def _residual(self, x: str) -> str:
        other = self.pick(self._alike(x))
        terms, signs = self.pick((((x, other), (1, 1)), ((other, x), (1, 1)), ((x, other), (1, -1))))
        return self._carrier("sum", terms, Sum(signs), self.sizes[x])

    def _parallel(self, x: str) -> str:
        """Branches of one value, summed: as RepVGG has them."""
        channels = self.sizes[x][0]
        branches = []
        for _ in range(self.pick((2, 2, 3))):
            kind = self.pick(("conv3", "conv3", "conv1", "skip", "norm", "norm"))
            window = self._window(3 if kind == "conv3" else 1, same=True)
            made = self._conv(x, channels, window) if kind.startswith("conv") else x
            branches.append(
                made if kind == "skip" else self.pick((made, self._norm(made))) if kind != "norm" else self._norm(x)
            )
        total = branches[0]
        for branch in branches[1:]:
            terms = self.pick(((total, branch), (branch, total)))
            total = self._carrier("sum", terms, Sum((1, 1)), self.sizes[x])
        return total

    def _concat(self, x: str) -> str:
        c, *space = self.sizes[x]
        others = [name for name, size in self.sizes.items() if list(size[1:]) == space and len(size) == 3]
        other = self.pick(others)
        parts = self.pick(((x, other), (other, x)))
        total = c + self.sizes[other][0]
        return x if total > 12 else self._carrier("concat", parts, Concat(1), (total, *space))

    def _pool(self, x: str) -> str:
        c, h, w = self.sizes[x]
        mode = self.pick(("max", "average"))
        if self.pick((False, False, True)):
            return self._carrier("pool", (x,), Pool(mode, (2, 3), keepdims=False), (c,))
        pad = self.pick((0, 1))
        window = Window((2, 2), (2, 2), (1, 1), ((pad, pad),) * 2)
        if min(h, w) < 2:
            return x
        rule = Pool(mode, (2, 3), window, counts_padding=mode == "average" and self.pick((False, True)))
        return self._carrier("pool", (x,), rule, (c, (h + 2 * pad) // 2, (w + 2 * pad) // 2))

    def _layout(self, x: str) -> str:
        """A channel shuffle by reshape and transposition, or a pixel shuffle."""
        c, h, w = self.sizes[x]
        if self.pick((False, True)) and c % 2 == 0:
            first = self._carrier("reshape", (x,), Reshape(), (2, c // 2, h, w), does=_reshaped(2, c // 2, h, w))
            turned = self._carrier("transpose", (first,), Transpose((0, 2, 1, 3, 4)), (c // 2, 2, h, w))
            made = self._carrier("reshape", (turned,), Reshape(), (c, h, w), does=_reshaped(c, h, w))
            for name in (first, turned):  # of rank 5: nothing else goes behind them
                self.hidden[name] = self.sizes.pop(name)
            return made
        first = self.pick((True, False))
        if c % 4 == 0 and self.pick((False, True)):
            return self._carrier("shuffle", (x,), Shuffle(1, 4, True, first), (c // 4, h * 2, w * 2))
        if h % 2 == 0 and w % 2 == 0 and c <= 3:
            return self._carrier("shuffle", (x,), Shuffle(1, 4, False, first), (c * 4, h // 2, w // 2))
        return x

    def _space(self, x: str) -> str:
        c, h, w = self.sizes[x]
        if max(h, w) > 8:
            return x
        if self.pick((False, True)):
            return self._carrier(
                "resize", (x,), Resize((2, 3)), (c, h * 2, w * 2), does=lambda a: a.repeat(2, axis=2).repeat(2, axis=3)
            )
        mode, value = self.pick((("constant", 0.0), ("constant", 1.5), ("reflect", 0.0), ("edge", 0.0)))
        if mode == "reflect" and min(h, w) < 2:
            return x
        extra = {"constant_values": value} if mode == "constant" else {}
        return self._carrier(
            "pad", (x,), Pad(mode, (2, 3), value), (c, h + 2, w + 2),
            does=lambda a: np.pad(a, ((0, 0), (0, 0), (1, 1), (1, 1)), mode=mode, **extra),
        )  # fmt: skip

    def _split(self, x: str) -> str:
        c, h, w = self.sizes[x]
        if c < 2:
            return x
        first = self.pick(range(1, c))
        return self._carrier("split", (x,), Split(1, (first, c - first)), (first, h, w), (c - first, h, w))

    def _select(self, x: str) -> str:
        c, h, w = self.sizes[x]
        indices = self.pick((tuple(range(c // 2)), tuple(range(c // 2, c)), tuple(reversed(range(c))), (0, 0)))
        return self._carrier("select", (x,), Select(((1, indices),)), (len(indices), h, w)) if indices else x

    def _flatten(self, x: str) -> str:
        c, h, w = self.sizes[x]
        if self.is_dynamic or c * h * w > 100:
            return x
        return self._carrier("flatten", (x,), Reshape(), (c * h * w,), does=_reshaped(c * h * w))


def _read(node: Node) -> tuple[str, ...]:
    return node.inputs if isinstance(node, Carrier | Opaque) else (node.input,)


def _reshaped(*shape: int) -> Callable[[Any], Any]:
    return lambda x: x.reshape(x.shape[0], *shape)


def _conv_size(size: int, window: Window, axis: int) -> int:
    begin, end = (window.pads or ())[axis]
    span = (window.kernel[axis] - 1) * window.dilation[axis] + 1
    return (size + begin + end - span) // window.stride[axis] + 1
