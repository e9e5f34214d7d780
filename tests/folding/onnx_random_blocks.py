"""Parts of random ONNX graphs: carriers in every spelling, and branches that meet again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper
from onnx_random_graphs import Growing, Misfit, Part
from onnx_random_linears import batch_norm, chain, conv, dense, flat_dense, space, step, transposed, weight

LARGEST_SIZE = 12  # of an axis of space that is made larger
END = 2**31 - 1  # the end of an axis, for Slice


def parts_behind(g: Growing, x: str) -> Sequence[Part]:
    """What may be put behind a value, the frequent ones several times."""
    anywhere = (batch_norm, batch_norm, chain, chain, step, activation, activation, residual, opaque, slim, transpose)
    if len(g.shape(x)) < 3:
        return (dense, dense, dense, dense_norm, dense_norm, *anywhere, part_of, concat)
    return (
        conv, conv, conv_norm, conv_norm, conv_norm, transposed, flat_dense, dense, batch_norm, *anywhere, concat,
        concat, residual, parallel, parallel, pool, pool, whole_pool, pad, resize, part_of, split, shuffle,
        pixel_shuffle, squeezed, reshape,
    )  # fmt: skip


def conv_norm(g: Growing, x: str) -> Sequence[str]:
    return batch_norm(g, conv(g, x)[0])


def dense_norm(g: Growing, x: str) -> Sequence[str]:
    return g.pick((batch_norm, chain))(g, dense(g, x)[0])


# One value in, values of the same shape out


def activation(g: Growing, x: str) -> Sequence[str]:
    kind = g.pick(("relu", "relu", "relu", "leaky", "prelu", "elu", "clip", "newer", "silu"))
    if kind == "leaky":
        return [g.node("LeakyRelu", x, alpha=g.pick((0.25, 0.1, None)))]
    if kind == "prelu":
        channels, rank = g.shape(x)[1:2] or (1,), len(g.shape(x))
        shape = g.pick(((1,), (*channels, *[1] * (rank - 2))))
        return [g.node("PRelu", x, g.const(g.rng.uniform(-0.5, 1.5, size=shape), "slope"))]
    if kind == "elu":
        return [g.node("Elu", x, alpha=g.pick((1.0, 0.5)))]
    if kind == "clip":
        return clip(g, x)
    if kind == "newer":
        known = {14: "HardSwish", 18: "Mish", 20: "Gelu", 24: "Swish"}
        return [g.node(g.pick([op for since, op in known.items() if since <= g.opset] or ["Relu"]), x)]
    if kind == "silu":
        return [g.node("Mul", x, g.node("Sigmoid", x))]
    return [g.node("Relu", x)]


def clip(g: Growing, x: str) -> Sequence[str]:
    low, high = g.pick(((0.0, 6.0), (0.0, 6.0), (0.0, None), (-1.0, 1.0)))
    if g.opset < 11:
        return [g.node("Clip", x, min=low, max=high)]
    bounds = [g.const(np.asarray(low))]
    if high is not None:
        bounds.append(g.const(np.asarray(high)))
    return [g.node("Clip", x, *bounds)]


def opaque(g: Growing, x: str) -> Sequence[str]:
    """What no fold passes."""
    kind = g.pick(("Tanh", "Sigmoid", "Softplus", "Neg", "Softmax", "Abs"))
    return [g.node(kind, x, axis=1 if kind == "Softmax" else None)]


def slim(g: Growing, x: str) -> Sequence[str]:
    """What is not there at run time."""
    y = g.node(g.pick(("Identity", "Dropout", "Identity")), x)
    if g.chance(3):  # a cast to the graph's own dtype, which in float64 is an identity too
        node = g.nodes[-1]
        node.op_type = "Cast"
        node.attribute.append(helper.make_attribute("to", g.elem))
    return [y]


# Several values in


def _alike(g: Growing, x: str, *, but: int | None = None) -> list[str]:
    """Values that have the shape of one, except perhaps on an axis."""

    def seen(name: str) -> Any:
        return [size for axis, size in enumerate(g.shape(name)) if axis != but], len(g.shape(name))

    floats = [name for name in g.data if name not in g.constants and g.data[name].dtype.kind == "f"]
    return [name for name in floats if seen(name) == seen(x)]


def residual(g: Growing, x: str) -> Sequence[str]:
    others = _alike(g, x)
    other = g.pick(others[-4:])
    if g.chance(3):
        return [g.node("Sum", *g.pick(((x, other), (other, x), (x, other, g.pick(others[-4:])))))]
    return [g.node(g.pick(("Add", "Add", "Sub")), *g.pick(((x, other), (other, x))))]


def concat(g: Growing, x: str) -> Sequence[str]:
    rank = len(g.shape(x))
    axis = g.pick((1, 1, 1, 1, rank - 1))
    others = _alike(g, x, but=axis)[-4:]
    parts = [x, *(g.pick(others) for _ in range(g.pick((1, 1, 2))))]
    if sum(g.shape(part)[axis] for part in parts) > 16 or (g.free_space and axis > 1):
        raise Misfit("too many channels")
    parts = parts if g.pick((True, False)) else parts[::-1]
    return [g.node("Concat", *parts, axis=axis - rank if g.opset >= 11 and g.chance(3) else axis)]


def parallel(g: Growing, x: str) -> Sequence[str]:
    """Branches of one value that are summed, as RepVGG has them."""
    channels, rank = space(g, x)
    branches = []
    for _ in range(g.pick((2, 2, 3))):
        kind = g.pick(("conv3", "conv3", "conv1", "skip", "norm"))
        made = x
        if kind.startswith("conv"):
            kernel = int(kind[-1])
            groups = g.pick([n for n in (1, 1, 2) if channels % n == 0])
            shape = channels, channels // groups, *[kernel] * rank
            w = weight(g, "same", math.prod(shape[1:]), *shape)
            made = g.node("Conv", x, w, group=groups, pads=[kernel // 2] * 2 * rank)
        branches.append(made if kind == "skip" or (kind != "norm" and g.chance(3)) else batch_norm(g, made)[0])
    if g.opset >= 8 and g.chance(4):
        return [g.node("Sum", *branches)]
    total = branches[0]
    for branch in branches[1:]:
        total = g.node("Add", *g.pick(((total, branch), (branch, total))))
    return [total]


# Over space


def pool(g: Growing, x: str) -> Sequence[str]:
    _, rank = space(g, x)
    op = g.pick(("MaxPool", "AveragePool"))
    kernel, stride = g.pick((2, 3)), g.pick((1, 2))
    given: dict[str, Any] = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank}
    padding = g.pick(("none", "same", "any", "auto"))
    if padding == "same":
        given["pads"] = [kernel // 2] * 2 * rank
    elif padding == "any":
        given["pads"] = [g.pick((0, 1)) for _ in range(2 * rank)]
    elif padding == "auto":
        given["auto_pad"] = g.pick(("SAME_UPPER", "VALID"))
    if op == "AveragePool":
        given["count_include_pad"] = g.pick((0, 1))
    if g.opset >= 10 and padding != "auto":
        given["ceil_mode"] = g.pick((0, 0, 1))
    return [g.node(op, x, **given)]


def whole_pool(g: Growing, x: str) -> Sequence[str]:
    _, rank = space(g, x)
    op = g.pick(("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"))
    if op.startswith("Global"):
        y = g.node(op, x)
        return [y] if g.pick((True, False)) else [g.node("Flatten", y)]
    axes = tuple(range(2, 2 + rank)) if g.pick((True, True, False)) else (1 + rank,)
    keepdims = g.pick((0, 1))
    if g.opset >= 18:
        return [g.node(op, x, g.integers(*axes), keepdims=keepdims)]
    return [g.node(op, x, axes=list(axes), keepdims=keepdims)]


def pad(g: Growing, x: str) -> Sequence[str]:
    _, rank = space(g, x)
    modes = ("constant", "constant", "reflect", "edge") + (("wrap",) if g.opset >= 19 else ())
    mode, value = g.pick(modes), g.pick((0.0, 0.0, 1.5))
    pads = [0, 0, *(g.pick((0, 1)) for _ in range(rank)), 0, 0, *(g.pick((0, 1)) for _ in range(rank))]
    if g.opset < 11:
        return [g.node("Pad", x, mode=mode, pads=pads, value=value)]
    given = [g.const(np.asarray(value))] if mode == "constant" else []
    return [g.node("Pad", x, g.integers(*pads), *given, mode=mode)]


def resize(g: Growing, x: str) -> Sequence[str]:
    _, rank = space(g, x)
    if max(g.shape(x)[2:]) > LARGEST_SIZE // 2:
        raise Misfit("too large")
    scales = g.const(np.asarray([1.0, 1.0, *[2.0] * rank], np.float32), "scales", narrow=False)
    mode = g.pick(("nearest", "nearest", "linear")) if rank == 2 else "nearest"
    if g.opset == 9:
        return [g.node("Upsample", x, scales, mode="nearest")]
    if g.opset == 10:
        return [g.node("Resize", x, scales, mode="nearest")]
    roi = "" if g.opset >= 13 else g.const(np.zeros(0), "roi")
    where = g.pick(("half_pixel", "asymmetric", "align_corners"))
    return [g.node("Resize", x, roi, scales, mode=mode, coordinate_transformation_mode=where)]


def pixel_shuffle(g: Growing, x: str) -> Sequence[str]:
    channels, rank = space(g, x)
    if rank != 2:
        raise Misfit("two axes of space")
    if channels % 4 == 0 and g.pick((True, False)):
        mode = g.pick(("DCR", "CRD")) if g.opset >= 11 else None
        return [g.node("DepthToSpace", x, blocksize=2, mode=mode)]
    if channels > 3:
        raise Misfit("too many channels")
    return [g.node("SpaceToDepth", x, blocksize=2)]


# The same elements


def shuffle(g: Growing, x: str) -> Sequence[str]:
    """Channels in another order, by a reshape, a transposition, a reshape."""
    shape = g.shape(x)
    if shape[1] % 2 or g.free_space:
        raise Misfit("the size is not known")
    apart = g.node("Reshape", x, g.integers(0, 2, shape[1] // 2, *shape[2:]))
    turned = g.node("Transpose", apart, perm=[0, 2, 1, *range(3, len(shape) + 1)])
    return [g.node("Reshape", turned, g.integers(0, shape[1], *shape[2:]))]


def reshape(g: Growing, x: str) -> Sequence[str]:
    """Space on one axis."""
    if g.free_space:
        raise Misfit("the size is not known")
    return [g.node("Reshape", x, g.integers(0, 0, -1))]


def transpose(g: Growing, x: str) -> Sequence[str]:
    """Channels last, or back."""
    rank = len(g.shape(x))
    if rank == 2:
        raise Misfit("no space")
    perm = g.pick(((0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))))
    return [g.node("Transpose", x, perm=list(perm))]


def squeezed(g: Growing, x: str) -> Sequence[str]:
    """An axis of size one more, or one less."""
    shape = g.shape(x)
    axis = next((axis for axis in range(2, len(shape)) if shape[axis] == 1), None)
    op = "Squeeze" if axis is not None and not g.free_space else "Unsqueeze"
    if op == "Unsqueeze" and len(shape) > 4:
        raise Misfit("too many axes")
    axis = axis if op == "Squeeze" else g.pick((2, len(shape)))
    if g.opset >= 13:
        return [g.node(op, x, g.integers(axis))]
    return [g.node(op, x, axes=[axis])]


# Parts of it


def part_of(g: Growing, x: str) -> Sequence[str]:
    """A slice or a choice of channels, or of another axis."""
    shape = g.shape(x)
    axis = g.pick((1, 1, 1, len(shape) - 1))
    size = shape[axis]
    if size < 2:
        raise Misfit("one channel")
    if g.pick((True, False)):
        indices = g.pick((tuple(range(size // 2)), tuple(reversed(range(size))), (0, 0, 1), (-1, 0)))
        return [g.node("Gather", x, g.integers(*indices), axis=axis)]
    start, end, by = g.pick(((0, size // 2, 1), (1, END, 1), (0, END, 2), (-1, -END, -1), (0, -1, 1)))
    if g.opset < 10:
        if by != 1:
            raise Misfit("Slice-1 has no steps")
        return [g.node("Slice", x, starts=[start], ends=[end], axes=[axis])]
    by_step = [g.integers(by)] if by != 1 or g.chance(2) else []
    return [g.node("Slice", x, g.integers(start), g.integers(end), g.integers(axis), *by_step)]


def split(g: Growing, x: str) -> Sequence[str]:
    """Parts of the channels; now and then they meet again."""
    channels, _ = space(g, x)
    if channels < 2:
        raise Misfit("one channel")
    first = g.pick(range(1, channels))
    sizes = (first, channels - first)
    if g.opset < 13:
        parts = g.several("Split", x, outputs=2, axis=1, split=list(sizes))
    elif g.opset >= 18 and g.chance(3):
        parts = g.several("Split", x, outputs=2, axis=1, num_outputs=2)
    else:
        parts = g.several("Split", x, g.integers(*sizes), outputs=2, axis=1)
    if g.chance(3):
        return [g.node("Concat", *(activation(g, part)[0] for part in parts), axis=1)]
    return parts
