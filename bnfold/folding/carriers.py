"""What is known of a carrier: how its output hangs together with its inputs. One dataclass a rule.

These are facts. What an affine map may do there, and under which condition, is in `bnfold.folding.transport`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Window:
    """The window of a convolution or a pool, one entry for each spatial axis.

    `pads` are (begin, end); None where they are chosen at run time (auto_pad). `output_padding`: of a transposed
    convolution. `ceil`: a pool that rounds its output size up.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    output_padding: tuple[int, ...] = ()
    ceil: bool = False

    @property
    def is_padded(self) -> bool:
        """True unless it is certain that the window never leaves the data."""
        return self.pads is None or any(begin or end for begin, end in self.pads)


@dataclass(frozen=True)
class Activation:
    """An elementwise function. `slope`: of leaky_relu, where it is one number; None for any other function.

    function: relu, leaky_relu, prelu, relu6, elu, silu, gelu, hardswish, mish. Any other function is opaque.
    """

    function: str
    slope: float | None = None


@dataclass(frozen=True)
class Concat:
    """The inputs behind one another along an axis."""

    axis: int


@dataclass(frozen=True)
class Sum:
    """The elementwise sum of the inputs, each with its sign (+1 or -1), of equal shapes or broadcast."""

    signs: tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """The maximum or average over windows, the channels apart.

    `axes`: the spatial axes, from the front. `window`: None where the pool is global or adaptive. `counts_padding`:
    zeros of the border count in the average. `has_divisor`: the average is a sum over a number that was given.
    `gives_indices`: somebody reads the places of the maxima. `keepdims`: the axes stay, with size 1 if global.
    """

    mode: Literal["max", "average"]
    axes: tuple[int, ...]
    window: Window | None = None
    counts_padding: bool = False
    has_divisor: bool = False
    gives_indices: bool = False
    keepdims: bool = True


@dataclass(frozen=True)
class Resize:
    """Upsampling or downsampling along some axes by interpolation (nearest, linear, cubic).

    `extrapolates`: points outside the data get a constant of their own; `outside` is that constant.
    """

    axes: tuple[int, ...]
    extrapolates: bool = False
    outside: float = 0.0


@dataclass(frozen=True)
class Pad:
    """A border around the data. `axes`: those where it is wider than nothing. `value`: of mode constant."""

    mode: Literal["constant", "reflect", "edge", "wrap"]
    axes: tuple[int, ...]
    value: float = 0.0


@dataclass(frozen=True)
class Reshape:
    """The same elements in the same order; the shapes are those of the values."""


@dataclass(frozen=True)
class Transpose:
    """The axes in another order: axis i of the output is axis perm[i] of the input."""

    perm: tuple[int, ...]


@dataclass(frozen=True)
class Select:
    """Some slices of one axis or several: (axis, indices); indices None where they are not known."""

    axes: tuple[tuple[int, tuple[int, ...] | None], ...]


@dataclass(frozen=True)
class Split:
    """One output for each part of an axis; the parts cover it in order."""

    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Shuffle:
    """Pixel shuffle: blocks of channels become blocks of space (`up`), or the other way round.

    Channel `c` of the side with fewer channels belongs to the channels `c * factor + k` of the other side
    (`channel_first`, PyTorch, ONNX mode CRD), or to `k * C + c` (ONNX mode DCR and SpaceToDepth); factor: the product
    of the block's sizes.
    """

    axis: int
    factor: int
    up: bool
    channel_first: bool


Rule: TypeAlias = Activation | Concat | Sum | Pool | Resize | Pad | Reshape | Transpose | Select | Split | Shuffle
