"""How an affine map passes a carrier: one rule each, with its algebra, its condition and its source.

`backward` asks: which maps on the inputs give this map on the outputs? `forward`: which map on the outputs do these
maps on the inputs amount to? A rule answers with maps, or with the reason why none is exact. `RULES` has a line for
each kind of carrier; a new one is a dataclass in `bnfold.folding.carriers`, two functions, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from bnfold.folding import carriers
from bnfold.folding.affine import AffineMap
from bnfold.folding.facts import Carrier, Reason
from bnfold.folding.transport import activations, layout, parts, reshaping, space, sums
from bnfold.folding.transport.passage import Passage, Shapes

Backward: TypeAlias = Callable[[Carrier, tuple[AffineMap | None, ...], Shapes], tuple[Passage, ...] | Reason]
Forward: TypeAlias = Callable[[Carrier, tuple[AffineMap | None, ...], Shapes], tuple[AffineMap, ...] | Reason]

RULES: dict[type[Any], tuple[Backward, Forward]] = {
    carriers.Activation: (activations.backward, activations.forward),
    carriers.Concat: (parts.concat_backward, parts.concat_forward),
    carriers.Split: (parts.split_backward, parts.split_forward),
    carriers.Select: (parts.select_backward, parts.select_forward),
    carriers.Sum: (sums.backward, sums.forward),
    carriers.Pool: (space.pool_backward, space.pool_forward),
    carriers.Resize: (space.resize_backward, space.resize_forward),
    carriers.Pad: (space.pad_backward, space.pad_forward),
    carriers.Reshape: (reshaping.backward, reshaping.forward),
    carriers.Transpose: (layout.transpose_backward, layout.transpose_forward),
    carriers.Shuffle: (layout.shuffle_backward, layout.shuffle_forward),
}


def backward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[Passage, ...] | Reason:
    """The ways to ask a carrier's inputs for maps so that its outputs get `maps` (None: nobody reads that output)."""
    return RULES[type(carrier.rule)][0](carrier, maps, shapes)


def forward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[AffineMap, ...] | Reason:
    """The maps on a carrier's outputs that `maps` on its inputs amount to (None: the input stays as it is)."""
    return RULES[type(carrier.rule)][1](carrier, maps, shapes)
