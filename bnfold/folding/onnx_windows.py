"""The window of an ONNX convolution or pool. Source: ONNX Conv-11, ConvTranspose-11, AveragePool-19, MaxPool-12."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.folding.carriers import Window
from bnfold.folding.onnx_attributes import integer, integers, text

Pads = tuple[tuple[int, int], ...]


def window_of(node: ir.Node, kernel: tuple[int, ...]) -> Window | None:
    """The window of a convolution or pool, None where its attributes contradict one another."""
    count = len(kernel)
    ones = (1,) * count
    is_transposed = node.op_type == "ConvTranspose"
    stride = integers(node, "strides") or ones
    dilation = integers(node, "dilations") or ones
    output_padding = (integers(node, "output_padding") or (0,) * count) if is_transposed else ()
    if not kernel or (integers(node, "kernel_shape") or kernel) != kernel:
        return None
    if any(len(given) != count or min(given) < 1 for given in (kernel, stride, dilation)):
        return None
    if is_transposed and (len(output_padding) != count or min(output_padding) < 0):
        return None
    pads = integers(node, "pads") or (0,) * (2 * count)
    if len(pads) != 2 * count or min(pads) < 0:
        return None
    found = _pads(node, pads, kernel, stride, dilation)
    if integers(node, "output_shape") is not None:
        found = None
    return Window(kernel, stride, dilation, found, output_padding, ceil=bool(integer(node, "ceil_mode", 0)))


def _pads(
    node: ir.Node, pads: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Pads | None:
    """(begin, end) of each axis; None where they hang on the size of the data, or are given twice."""
    count = len(kernel)
    mode = text(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        return tuple((pads[at], pads[count + at]) for at in range(count))
    if any(pads):
        return None
    if mode == "VALID":
        return ((0, 0),) * count
    if mode not in ("SAME_UPPER", "SAME_LOWER") or set(stride) != {1} or node.op_type == "ConvTranspose":
        return None
    # With stride 1 the output is as large as the input, whatever that is; an odd rest goes to the end, or the front.
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    upper = mode == "SAME_UPPER"
    return tuple((total // 2, total - total // 2) if upper else (total - total // 2, total // 2) for total in totals)
