"""Operators in float64 for the ONNX reference evaluator, which has them wrong, too slow, or in float32 alone.

As of onnx 1.23: ConvTranspose with groups cuts the weight by the wrong channels (it raises, or answers wrong); MaxPool
mistakes the order of `pads` and drops NaN; both and AveragePool loop over elements in Python. GlobalMaxPool takes the
wrong axes unless there are two of space. Conv is right, but makes the column matrix of a whole batch at once. Softmax
and LogSoftmax are those of opset 13 in every opset; LRN sums for as many channels as there are samples. These follow
the specifications Conv-11, ConvTranspose-11, MaxPool-12 and AveragePool-19 over numpy's sliding windows; the tests
compare them with torch and with ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, np.dtype[Any]]
Sizes = Sequence[int] | None

_COLUMNS = 1 << 20  # elements of the column matrix of a convolution at a time: 8 MiB, which the allocator keeps


@dataclass(frozen=True)
class Window:
    """A window that slides over the spatial axes: one size an axis each, all paddings resolved."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """The number of positions that the dilated kernel spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def view(self, x: Array, fill: float) -> Array:
        """(N, C, *spatial) as (N, C, *outputs, *kernel), padded with `fill`; a view unless padding copies."""
        needed = [(o - 1) * s + r for o, s, r in zip(self.outputs, self.strides, self.reach, strict=True)]
        missing = [max(0, n - b - size) for n, b, size in zip(needed, self.before, x.shape[2:], strict=True)]
        padding = [(0, 0), (0, 0), *zip(self.before, missing, strict=True)]
        padded = np.pad(x, padding, constant_values=fill)[_last(slice(n) for n in needed)]
        axes = tuple(range(2, x.ndim))
        windows = sliding_window_view(padded, self.reach, axis=axes)
        steps = tuple(slice(None, None, s) for s in (*self.strides, *self.dilations))
        return cast(Array, windows[(slice(None), slice(None), *steps)])


def _last(indices: Iterable[Any]) -> Any:
    """An index of the last axes."""
    return (..., *indices)


def window(
    spatial: Sequence[int], kernel: Sequence[int], auto_pad: str | None, dilations: Sizes, pads: Sizes, strides: Sizes,
    ceil_mode: int = 0,
) -> Window:  # fmt: skip
    """Resolve the attributes of Conv-11, MaxPool-12 and AveragePool-19 for an input of this spatial shape."""
    rank = len(spatial)
    steps, gaps = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, gaps, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        outputs = [math.ceil(size / s) for size, s in zip(spatial, steps, strict=True)]
        total = [max(0, (o - 1) * s + r - size) for o, s, r, size in zip(outputs, steps, reach, spatial, strict=True)]
        less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    else:
        given = tuple(pads or ()) if auto_pad in (None, "", "NOTSET") else ()
        before, after = (given[:rank], given[rank:]) if given else ((0,) * rank, (0,) * rank)
        outputs = []
        for size, b, a, r, s in zip(spatial, before, after, reach, steps, strict=True):
            free = size + b + a - r
            count = (math.ceil(free / s) if ceil_mode else free // s) + 1
            # A window that starts in the padding behind the data does not count (MaxPool-12, ceil_mode).
            outputs.append(count - (1 if ceil_mode and (count - 1) * s >= size + b else 0))
    return Window(tuple(kernel), steps, gaps, before, after, tuple(outputs))


def convolve(x: Array, weight: Array, place: Window, groups: int) -> Array:
    """x: (N, C, *spatial); weight: (O, C/g, *K); gives (N, O, *outputs)."""
    rank = len(place.kernel)
    batch, outputs = x.shape[0], weight.shape[0]
    result = np.empty((batch, outputs, *place.outputs), np.result_type(x, weight))
    columns = math.prod(weight.shape[1:])
    kernel = weight.reshape(groups, outputs // groups, columns)
    step = max(1, _COLUMNS // max(1, columns * groups * math.prod(place.outputs)))
    for start in range(0, batch, step):
        windows = place.view(x[start : start + step], 0.0)
        rows = windows.shape[0]
        windows = windows.reshape(rows, groups, -1, *place.outputs, *place.kernel)
        order = (1, 2, *range(3 + rank, 3 + 2 * rank), 0, *range(3, 3 + rank))
        matrix = windows.transpose(order).reshape(groups, columns, -1)
        part = (kernel @ matrix).reshape(groups, outputs // groups, rows, *place.outputs)
        result[start : start + rows] = np.moveaxis(part, 2, 0).reshape(rows, outputs, *place.outputs)
    return result


def scatter(x: Array, weight: Array, place: Window, groups: int) -> Array:
    """The transpose of a convolution. x: (N, C, *spatial); weight: (C, O/g, *K); place.outputs: the result's size."""
    batch, inputs = x.shape[:2]
    per_group = weight.shape[1]
    size = [o + b + a for o, b, a in zip(place.outputs, place.before, place.after, strict=True)]
    size = [max(n, (i - 1) * s + r) for n, i, s, r in zip(size, x.shape[2:], place.strides, place.reach, strict=True)]
    result = np.zeros((batch, groups * per_group, *size), np.result_type(x, weight))
    data = x.reshape(batch, groups, inputs // groups, -1)
    kernel = weight.reshape(groups, inputs // groups, per_group, *place.kernel)
    for taps in np.ndindex(*place.kernel):
        part = np.swapaxes(kernel[_last(taps)], 1, 2)[None] @ data
        at = tuple(
            slice(tap * d, tap * d + (i - 1) * s + 1, s)
            for tap, d, s, i in zip(taps, place.dilations, place.strides, x.shape[2:], strict=True)
        )
        result[_last(at)] += part.reshape(batch, groups * per_group, *x.shape[2:])
    crop = tuple(slice(b, b + o) for b, o in zip(place.before, place.outputs, strict=True))
    return cast(Array, result[_last(crop)])


def _transposed(
    spatial: Sequence[int], kernel: Sequence[int], auto_pad: str | None, dilations: Sizes, pads: Sizes, strides: Sizes,
    extra: Sizes, wanted: Sizes,
) -> Window:  # fmt: skip
    """Resolve the attributes of ConvTranspose-11; extra: output_padding, wanted: output_shape."""
    rank = len(spatial)
    steps, gaps, more = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank), tuple(extra or (0,) * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, gaps, strict=True)]
    full = [s * (i - 1) + m + r for s, i, m, r in zip(steps, spatial, more, reach, strict=True)]
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    if wanted or same:
        outputs = tuple(wanted or ())[-rank:] or tuple(i * s for i, s in zip(spatial, steps, strict=True))
        total = [max(0, f - o) for f, o in zip(full, outputs, strict=True)]
        less, most = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (less, most) if auto_pad == "SAME_UPPER" else (most, less)
    else:
        given = tuple(pads or ()) if auto_pad in (None, "", "NOTSET") else ()
        before, after = (given[:rank], given[rank:]) if given else ((0,) * rank, (0,) * rank)
        outputs = tuple(f - b - a for f, b, a in zip(full, before, after, strict=True))
    return Window(tuple(kernel), steps, gaps, before, after, outputs)


def _with_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape(-1, *(1,) * (y.ndim - 2))


class Conv(OpRun):
    """Conv-11."""

    op_domain = ""

    def _run(
        self, X: Array, W: Array, B: Array | None = None, auto_pad: str | None = None, dilations: Sizes = None,
        group: int | None = None, kernel_shape: Sizes = None, pads: Sizes = None, strides: Sizes = None,
    ) -> tuple[Array]:  # fmt: skip
        del kernel_shape  # the weight says the same
        place = window(X.shape[2:], W.shape[2:], auto_pad, dilations, pads, strides)
        return (_with_bias(convolve(X, W, place, group or 1), B),)


class ConvTranspose(OpRun):
    """ConvTranspose-11."""

    op_domain = ""

    def _run(
        self, X: Array, W: Array, B: Array | None = None, auto_pad: str | None = None, dilations: Sizes = None,
        group: int | None = None, kernel_shape: Sizes = None, output_padding: Sizes = None, output_shape: Sizes = None,
        pads: Sizes = None, strides: Sizes = None,
    ) -> tuple[Array]:  # fmt: skip
        del kernel_shape
        place = _transposed(X.shape[2:], W.shape[2:], auto_pad, dilations, pads, strides, output_padding, output_shape)
        return (_with_bias(scatter(X, W, place, group or 1), B),)


class MaxPool(OpRun):
    """MaxPool-12; Indices count in row-major order over the whole tensor."""

    op_domain = ""

    def _run(
        self, x: Array, auto_pad: str | None = None, ceil_mode: int | None = None, dilations: Sizes = None,
        kernel_shape: Sizes = None, pads: Sizes = None, storage_order: int | None = None, strides: Sizes = None,
    ) -> tuple[Array, ...]:  # fmt: skip
        place = window(x.shape[2:], kernel_shape or (), auto_pad, dilations, pads, strides, ceil_mode or 0)
        rank = len(place.kernel)
        lowest: Any = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        windows = place.view(x, lowest)
        if len(self.output) == 1:
            return (windows.max(axis=tuple(range(-rank, 0))),)
        if storage_order:
            raise NotImplementedError("MaxPool with storage_order = 1 and Indices")
        flat = windows.reshape(*windows.shape[:-rank], -1)
        positions = place.view(np.arange(x.size, dtype=np.int64).reshape(x.shape), -1)
        best = flat.argmax(axis=-1)[..., None]
        indices = np.take_along_axis(positions.reshape(flat.shape), best, axis=-1)[..., 0]
        return np.take_along_axis(flat, best, axis=-1)[..., 0], indices


class AveragePool(OpRun):
    """AveragePool-19. With count_include_pad the stated padding counts, what ceil_mode adds beyond it does not."""

    op_domain = ""

    def _run(
        self, x: Array, auto_pad: str | None = None, ceil_mode: int | None = None,
        count_include_pad: int | None = None, dilations: Sizes = None, kernel_shape: Sizes = None,
        pads: Sizes = None, strides: Sizes = None,
    ) -> tuple[Array]:  # fmt: skip
        place = window(x.shape[2:], kernel_shape or (), auto_pad, dilations, pads, strides, ceil_mode or 0)
        axes = tuple(range(-len(place.kernel), 0))
        counted = np.ones((1, 1, *x.shape[2:]))
        if count_include_pad:
            counted = np.pad(counted, [(0, 0), (0, 0), *zip(place.before, place.after, strict=True)], constant_values=1)
            whole = Window(
                place.kernel, place.strides, place.dilations, (0,) * len(axes), (0,) * len(axes), place.outputs
            )
            count = whole.view(counted, 0.0).sum(axis=axes)
        else:
            count = place.view(counted, 0.0).sum(axis=axes)
        return (place.view(x, 0.0).sum(axis=axes) / count,)


class GlobalMaxPool(OpRun):
    """GlobalMaxPool-1: (N, C, *spatial) -> (N, C, 1, ...)."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def _softmax_axes(operator: OpRun, x: Array) -> tuple[int, ...]:
    """The axes that sum to one: before opset 13 the given one (1 by default) and all behind it, then one (the last)."""
    # The evaluator's own default is that of opset 13, whatever the opset.
    given = next((attribute.i for attribute in operator.onnx_node.attribute if attribute.name == "axis"), None)
    if operator.run_params["opsets"][""] >= 13:
        return (-1 if given is None else given,)
    return tuple(range(x.ndim))[1 if given is None else given :]


class Softmax(OpRun):
    """Softmax-1, -11 and -13. The evaluator's own computes that of opset 13 for every opset."""

    op_domain = ""

    def _run(self, X: Array, axis: int | None = None) -> tuple[Array]:
        del axis  # as the evaluator understands it
        axes = _softmax_axes(self, X)
        power = np.exp(X - X.max(axis=axes, keepdims=True))
        return (power / power.sum(axis=axes, keepdims=True),)


class LogSoftmax(OpRun):
    """LogSoftmax-1, -11 and -13, for the same reason."""

    op_domain = ""

    def _run(self, X: Array, axis: int | None = None) -> tuple[Array]:
        del axis  # as the evaluator understands it
        axes = _softmax_axes(self, X)
        rest = X - X.max(axis=axes, keepdims=True)
        return (rest - np.log(np.exp(rest).sum(axis=axes, keepdims=True)),)


class LRN(OpRun):
    """LRN-13, which sums over `size` neighbouring channels."""

    op_domain = ""

    def _run(
        self, x: Array, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1
    ) -> tuple[Array]:  # fmt: skip
        before, after = (size - 1) // 2, size // 2
        padded = np.pad(x**2, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        total = sum(padded[:, at : at + x.shape[1]] for at in range(size))
        return (x / (bias + alpha / size * total) ** beta,)


class Erf(OpRun):
    """Erf-13. The evaluator's own rounds to float32; PyTorch exports GELU with it."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.asarray(_erf(x), x.dtype),)


class Gelu(OpRun):
    """Gelu-20, by its formula: the function body of the schema spells sqrt(2) and pi out as float32."""

    op_domain = ""

    def _run(self, x: Array, approximate: str | bytes | None = None) -> tuple[Array]:
        if approximate in ("tanh", b"tanh"):
            inner = np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))
        else:
            inner = np.asarray(_erf(x / math.sqrt(2.0)), x.dtype)
        return (0.5 * x * (1.0 + inner),)


class HardSwish(OpRun):
    """HardSwish-14, by its formula: the function body of the schema has 1/6 as float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),)


class BatchNormalization(OpRun):
    """BatchNormalization-7 to -15. Before opset 14 the evaluator's own normalises by the batch, in part or entirely."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float = 1e-5,
        momentum: float = 0.9, training_mode: int = 0, spatial: int = 1,
    ) -> tuple[Array, ...]:  # fmt: skip
        outputs = len(self.onnx_node.output)
        if not spatial:
            raise NotImplementedError("BatchNormalization with spatial = 0 normalises each activation by itself")
        if outputs > 3 or (outputs > 1 and not training_mode):
            raise NotImplementedError("BatchNormalization in training mode before opset 14 has no one definition")
        running: tuple[Array, ...] = ()
        if training_mode:
            axes = (0, *range(2, x.ndim))
            kept, new = momentum, 1.0 - momentum
            batch_mean, batch_variance = x.mean(axis=axes), x.var(axis=axes)
            running = (kept * mean + new * batch_mean, kept * variance + new * batch_variance)
            mean, variance = batch_mean, batch_variance
        gamma, beta, mean, variance = (
            array.reshape(-1, *(1,) * (x.ndim - 2)) for array in (scale, bias, mean, variance)
        )  # fmt: skip
        return (gamma * (x - mean) / np.sqrt(variance + epsilon) + beta, *running[: outputs - 1])


class LayerNormalization(OpRun):
    """LayerNormalization-17. The evaluator's own takes no statistics in float64, which stash_type asks for."""

    op_domain = ""

    def _run(
        self, X: Array, scale: Array, B: Array | None = None, axis: int = -1, epsilon: float = 1e-5,
        stash_type: int | None = None,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        del stash_type  # every float is float64
        axes = tuple(range(X.ndim)[axis:])
        mean = X.mean(axis=axes, keepdims=True)
        inverse = 1.0 / np.sqrt(((X - mean) ** 2).mean(axis=axes, keepdims=True) + epsilon)
        y = (X - mean) * inverse * scale
        return (y if B is None else y + B), mean, inverse


class RMSNormalization(OpRun):
    """RMSNormalization-23, for the same reason."""

    op_domain = ""

    def _run(
        self, X: Array, scale: Array, axis: int = -1, epsilon: float = 1e-5, stash_type: int | None = None
    ) -> tuple[Array]:
        del stash_type
        axes = tuple(range(X.ndim)[axis:])
        return (X / np.sqrt((X**2).mean(axis=axes, keepdims=True) + epsilon) * scale,)


_erf = np.vectorize(math.erf, otypes=[np.float64])

OPERATORS = (
    Conv, ConvTranspose, MaxPool, AveragePool, GlobalMaxPool, Erf, Gelu, HardSwish, BatchNormalization,
    LayerNormalization, RMSNormalization, Softmax, LogSoftmax, LRN,
)  # fmt: skip
