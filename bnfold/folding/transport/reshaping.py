"""An affine map and a reshape: row-major order stays, so the map's constants are spread and viewed as the data is.

Algebra: where a run of axes before and a run of axes after have the same product, the elements of the one run are
those of the other, in the same order. A map that varies within a run is spread over the whole run and viewed anew.
Condition: the runs are proven by sizes that are known, or by symbols that are the same; a map that varies within a
run of unknown sizes does not pass. Equal last axes are kept as they are, and so are equal first ones.
Source: ONNX Reshape-21; row-major order of numpy.reshape.
"""

from __future__ import annotations

from typing import TypeAlias

from bnfold.folding.affine import AffineMap, compressed
from bnfold.folding.expressions import Expr, spread, view
from bnfold.folding.facts import Carrier, Dim, Reason
from bnfold.folding.transport.passage import Passage, Shapes, only, unknown_shape

Run: TypeAlias = tuple[tuple[Dim, ...], tuple[Dim, ...]]


def backward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[Passage, ...] | Reason:
    """The map of the output, in the shape of the input."""
    found = _moved(carrier, only(maps), carrier.outputs[0], carrier.inputs[0], shapes)
    return found if isinstance(found, Reason) else (Passage((found,)),)


def forward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[AffineMap, ...] | Reason:
    """The map of the input, in the shape of the output."""
    found = _moved(carrier, only(maps), carrier.inputs[0], carrier.outputs[0], shapes)
    return found if isinstance(found, Reason) else (found,)


def runs(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> list[Run]:
    """The axes of two shapes of equal size in runs of equal products, from the front; one of them may be unproven."""
    head, before, after = _peeled(before, after)
    tail, rest_before, rest_after = _peeled(before[::-1], after[::-1])
    middle: list[Run] = [(rest_before[::-1], rest_after[::-1])] if rest_before or rest_after else []
    return head + middle + [(one[::-1], two[::-1]) for one, two in reversed(tail)]


def _peeled(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> tuple[list[Run], tuple[Dim, ...], tuple[Dim, ...]]:
    """Runs of equal products off the front of two shapes, and what is left of them."""
    found: list[Run] = []
    while before and after:
        run = _first_run(before, after)
        if run is None:
            break
        found.append((before[: run[0]], after[: run[1]]))
        before, after = before[run[0] :], after[run[1] :]
    return found, before, after


def _first_run(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> tuple[int, int] | None:
    """How many axes of each make the shortest run with equal products; None when none is proven."""
    if before[0] is not None and before[0] == after[0]:
        return 1, 1
    taken = [0, 0]
    products = [1, 1]
    sides = (before, after)
    while not (all(taken) and products[0] == products[1]):
        side = 0 if not taken[0] or (taken[1] and products[0] < products[1]) else 1
        if taken[side] == len(sides[side]):
            return None
        size = sides[side][taken[side]]
        if not isinstance(size, int) or size < 1:
            return None
        products[side] *= size
        taken[side] += 1
    return taken[0], taken[1]


def _moved(carrier: Carrier, moving: AffineMap, source: str, target: str, shapes: Shapes) -> AffineMap | Reason:
    if not moving.axes and not moving.scale.shape and not moving.shift.shape:
        return moving
    before, after = shapes.get(source), shapes.get(target)
    if before is None or after is None:
        return unknown_shape(carrier, source if before is None else target)
    found = [reshaped(part, before, after) for part in (moving.scale, moving.shift)]
    if found[0] is None or found[1] is None:
        return Reason(
            "RESHAPE_UNPROVEN", f"{carrier.label} reshapes {_text(before)} to {_text(after)}, where its axis is lost"
        )
    return AffineMap(found[0], found[1])


def reshaped(part: Expr, before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Expr | None:
    """A constant that broadcasts against the one shape, as one that broadcasts against the other; None: unproven."""
    if not part.shape:
        return part
    full: list[int] = []
    target: list[int] = []
    at = 0
    for run_before, run_after in runs(before, after):
        sizes = part.shape[at : at + len(run_before)]
        at += len(run_before)
        if all(size == 1 for size in sizes):
            full += sizes
            target += [1] * len(run_after)
        elif all(isinstance(size, int) for size in (*run_before, *run_after)):
            full += [size for size in run_before if isinstance(size, int)]
            target += [size for size in run_after if isinstance(size, int)]
        elif len(run_before) == len(run_after) == 1:  # one symbol, the same on both sides
            full += sizes
            target += sizes
        else:
            return None
    return compressed(view(spread(part, tuple(full)), tuple(target)))


def _text(shape: tuple[Dim, ...]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
