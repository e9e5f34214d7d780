"""The rule of rounding of an interpolation, whose coefficients are the runtime's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bnfold.parity.local.running import F64, State, Step


def interpolate(step: Step) -> list[State]:
    """Linear interpolation. Source: ONNX Upsample-9, Resize-10 to Resize-19.

    How exactly the runtime computes its coordinates is not stated; both sides compute the same ones. All that is used
    is that the coefficients are not negative, that their sum is 1 up to rounding, and that they are of the places
    around the nearest one: the worst of these stands for the sum.
    """
    mode = step.attribute("mode", b"nearest")
    outside = step.attribute("coordinate_transformation_mode", b"half_pixel") == b"tf_crop_and_resize"
    if mode != b"linear" or outside or step.attribute("antialias", 0):
        raise step.unbounded(f"resizes in mode {mode.decode()}, for whose coefficients there is no rule")
    x, by = step.data(), step.by
    others = [None if state is None else state.value for state in step.inputs[1:]]
    nearest = step.apply(x.size, *others, drop=("mode", "nearest_mode"))[0]
    axes = _resized_axes(step, x.size.shape, nearest.shape)
    around = (_around(array, axes) for array in (x.size, x.error))
    size, error = (step.apply(array, *others, drop=("mode", "nearest_mode"))[0] for array in around)
    own = by.sums(2 ** len(axes) * 2 + 4)
    return [State(size, error + own * (size + error) + by.eta)]


def _resized_axes(step: Step, before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """The axes along which an interpolation looks at neighbours: all but those that it certainly leaves alone.

    One of the same length may still be resized, by 1.2, say; channels last have their places on axis 1.
    """
    at = 1 if step.node.op_type == "Upsample" else 2
    given = step.inputs[at] if len(step.inputs) > at else None
    scales = None if given is None or given.value is None else given.value.reshape(-1)
    axes = step.attribute("axes", range(len(before)))
    if scales is None or len(scales) != len(axes):
        return tuple(axis for axis, size in enumerate(before) if axis > 1 or size != after[axis])
    return tuple(sorted(axis % len(before) for axis, scale in zip(axes, scales, strict=True) if scale != 1))


def _around(array: F64, axes: tuple[int, ...]) -> F64:
    """The largest of each place and its neighbours along some axes."""
    if not axes:
        return array
    padded = np.pad(array, [(1, 1) if axis in axes else (0, 0) for axis in range(array.ndim)], mode="edge")
    return np.asarray(sliding_window_view(padded, (3,) * len(axes), axis=axes).max(axis=tuple(range(-len(axes), 0))))
