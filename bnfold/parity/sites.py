"""Sites: linears that absorb the norms right behind them, and the exact map of those norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.folding.expressions import Array
from bnfold.folding.facts import Linear, Norm
from bnfold.parity.exact import Interval
from bnfold.parity.pointwise import evaluate


@dataclass(frozen=True)
class Site:
    """A linear of the reference and the norms right behind it that it absorbs, with its tensors' names in the fold.

    bias: empty where the folded linear has none.
    """

    linear: Linear
    absorbed: tuple[Norm, ...]
    weight: str
    bias: str

    @property
    def norms(self) -> str:
        """The norms as a sentence names them."""
        return " and ".join(f"'{norm.name}'" for norm in self.absorbed)


def exact_map(norms: Sequence[Norm], channels: int) -> tuple[list[Interval], list[Interval]]:
    """Scale and shift of the norms applied one after the other, the first one first: `channels` intervals each."""
    scale, shift = [Interval.of(1.0)] * channels, [Interval.of(0.0)] * channels
    for norm in norms:
        outer_scale, outer_shift = _spread(evaluate(norm.scale), channels), _spread(evaluate(norm.shift), channels)
        shift = [a * t + b for a, t, b in zip(outer_scale, shift, outer_shift, strict=True)]
        scale = [a * s for a, s in zip(outer_scale, scale, strict=True)]
    return scale, shift


def output_channels(linear: Linear) -> Array:
    """The output channel of each weight element by its first two indices.

    int64, (O, 1), or (I, O/g) where the input channels come first. Source: the layouts of ONNX Conv-11 (O, I/g, *K),
    ConvTranspose-11 (I, O/g, *K), Gemm-13.
    """
    if linear.out_first:
        return np.arange(linear.channels, dtype=np.int64)[:, None]
    inputs, per_group = linear.weight.shape[:2]
    group = np.arange(inputs, dtype=np.int64) // max(1, inputs // linear.groups)
    return np.asarray(group[:, None] * per_group + np.arange(per_group, dtype=np.int64)[None, :])


def exact_bias(linear: Linear, scale: Sequence[Interval], shift: Sequence[Interval]) -> list[Interval]:
    """The folded bias, exactly: scale * beta * bias + shift, (O,)."""
    if linear.bias is None:
        return list(shift)
    stored = linear.bias.load().astype(np.float64).reshape(-1).tolist()
    bias = [Interval.of(value) for value in stored]
    beta = Interval.of(linear.beta)
    bias = bias * linear.channels if len(bias) == 1 else bias
    return [a * beta * c + t for a, c, t in zip(scale, bias, shift, strict=True)]


def _spread(values: Array, channels: int) -> list[Interval]:
    """A scalar or a vector over the channels, as one interval a channel."""
    flat = values.reshape(-1).tolist()
    return flat * channels if len(flat) == 1 else flat
