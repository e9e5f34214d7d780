"""What surrounds the formula, got wrong: axes, groups, biases, branches, borders, constant channels, slopes.

Each way is tried wherever an expression has the form that the fold gives it; what an expression does not have cannot
be got wrong in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from bnfold.folding.expressions import (
    ONE,
    Embed,
    Expr,
    Given,
    Join,
    Leaf,
    Op,
    Permute,
    Scalar,
    Spread,
    Take,
    Total,
    View,
    leaves,
    size_of,
    view,
)
from bnfold.folding.facts import Linear
from bnfold.folding.onnx_edits import NewTensor
from bnfold.folding.weights import response, weights_of
from bnfold.parity.hypotheses.rewriting import Rewrite, Tree, full, known_statistics, plain, shaped

MOST = 12  # places at which one and the same thing is tried
LARGEST = 4000  # nodes; of longer expressions only the formulas are tried


def layouts(new: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """Each way to get anything but the formula of a norm wrong in a new tensor."""
    if len(tree.nodes) <= LARGEST:
        for way in WAYS:
            yield from islice(way(new, tree), MOST)


def branches(new: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """Each way to get a sum wrong. To be tried last: beta is a term of a sum as well."""
    return islice(_branches(new, tree), 2 * MOST) if len(tree.nodes) <= LARGEST else iter(())


def _norm_keys(new: NewTensor) -> set[object]:
    """The keys of the tensors that norms are made of, without a bias that was composed with one of them."""
    keys: set[object] = set()
    for norm in new.norms:
        known = known_statistics(norm)
        parts = (known.gamma, known.beta, known.mean, known.variance) if known else (norm.scale, norm.shift)
        keys |= {tensor.key for part in parts for tensor in leaves(part)}
    return keys


def _other_axis(_: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """A factor over the output channels put on the input channels, or the other way round."""
    for node in tree.nodes:
        if not isinstance(node, Op) or node.kind != "mul" or len(node.shape) < 2 or node.shape[0] != node.shape[1]:
            continue
        for arg in node.args:
            varying = [axis for axis, size in enumerate(arg.shape) if size != 1]
            if len(arg.shape) == len(node.shape) and varying in ([0], [1]):
                turned = Permute(arg, (1, 0, *range(2, len(arg.shape))))
                args = tuple(turned if other is arg else other for other in node.args)
                yield tree.replaced("WRONG_AXIS", "a factor was applied on the wrong axis", {id(node): Op("mul", args)})


def _widened(_: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """Numbers of channels repeated for groups or places: in the other order, for the first group, at one place."""
    mixed: dict[int, Expr] = {}
    for node in tree.nodes:
        if isinstance(node, Take) and (other := _repeated_otherwise(node)) is not None:
            mixed[id(node)] = other
        if not isinstance(node, View) or not isinstance(node.of, Spread) or size_of(node.of) == size_of(node.of.of):
            continue
        inner = node.of
        small, large = inner.of.shape, inner.shape
        wide = [axis for axis in range(len(large)) if small[axis] != large[axis]]
        kept = [axis for axis in range(len(large)) if axis not in wide]
        perms = [(*wide, *kept), (*kept, *wide)]
        perm = next((perm for perm in perms if _moves(perm, large)), None)
        if perm is not None:
            mixed[id(node)] = View(Permute(inner, perm), node.shape)
        if len(small) == 3 and small[0] > 1 and small[1] == 1:
            first = View(Spread(Take(inner.of, 0, (0,) * small[0]), large), node.shape)
            yield tree.replaced(
                "FIRST_GROUP", "the channels of the first group were used for every group", {id(node): first}
            )
        if any(isinstance(other, Total) for other in tree.nodes):
            once = View(Embed(inner.of, large, (0,) * len(large), (1,) * len(large)), node.shape)
            yield tree.replaced(
                "ONE_PLACE", "the shift was counted at one place of each channel only", {id(node): once}
            )

    words = "the channels were taken in the other order: interleaved, not in blocks"
    if len(mixed) > 1:
        yield tree.replaced("INTERLEAVED", words, mixed)
    for key, other in mixed.items():
        yield tree.replaced("INTERLEAVED", words, {key: other})


def _repeated_otherwise(node: Take) -> Expr | None:
    """Channels repeated in blocks (0 0 1 1) as if they were tiled (0 1 0 1), or the other way round."""
    count, times = node.of.shape[node.axis], len(node.indices) // max(1, node.of.shape[node.axis])
    tiled = tuple(range(count)) * times
    blocks = tuple(sorted(tiled))
    if times < 2 or node.indices not in (tiled, blocks) or tiled == blocks:
        return None
    return Take(node.of, node.axis, blocks if node.indices == tiled else tiled)


def _moves(perm: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """True when a permutation changes the order of elements."""
    seen = [axis for axis in perm if shape[axis] != 1]
    return seen != sorted(seen)


def _taps(_: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """A sum over all taps that takes the one in the middle only."""
    for node in tree.nodes:
        if not isinstance(node, Total):
            continue
        taps = [axis for axis in node.axes if axis >= 2 and node.of.shape[axis] > 1]
        part = node.of
        for axis in taps:
            part = Take(part, axis, (part.shape[axis] // 2,))
        if taps:
            words = "the shift was summed over the middle tap only, not over all taps"
            yield tree.replaced("ONE_TAP", words, {id(node): Total(part, node.axes)})


def _slices(_: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """The channels of one branch taken for another."""
    for node in tree.nodes:
        if not isinstance(node, Take):
            continue
        count, whole = len(node.indices), node.of.shape[node.axis]
        if count >= whole or node.indices != tuple(range(node.indices[0], node.indices[0] + count)):
            continue
        for start in dict.fromkeys((0, whole - count, count)):
            if start != node.indices[0] and start + count <= whole:
                other = Take(node.of, node.axis, tuple(range(start, start + count)))
                words = f"the norm's channels from {start} on were used instead of those from {node.indices[0]} on"
                yield tree.replaced("OTHER_SLICE", words, {id(node): other})


def _factors(_: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """A literal factor, Gemm's alpha or beta, left out."""
    for node in tree.nodes:
        if isinstance(node, Op) and node.kind == "mul":
            for at, arg in enumerate(node.args):
                core = plain(arg)
                if isinstance(core, Scalar) and core != ONE:
                    kept = shaped(node.args[1 - at], node)
                    words = f"the factor {core.value:g} (alpha or beta) was left out"
                    yield tree.replaced("FACTOR_LOST", words, {id(node): kept})


def _bias(new: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """The linear's own bias lost, negated or not scaled; a shift added that belongs elsewhere."""
    if new.role != "bias":
        return
    norms = _norm_keys(new)
    own = [node for node in tree.nodes if isinstance(node, Leaf) and node.tensor.key not in norms]
    own = [leaf for leaf in own if size_of(leaf) in (1, size_of(new.expr)) or not _is_summed(leaf, tree)]
    for leaf in own:
        name = f"the bias '{leaf.tensor.name}'"
        yield tree.replaced("BIAS_LOST", f"{name} was lost", {id(leaf): full(0.0, leaf)})
        yield tree.replaced("BIAS_SIGN", f"{name} had the wrong sign", {id(leaf): Op("mul", (leaf, Scalar(-1.0)))})
        for node in tree.nodes:
            if isinstance(node, Op) and node.kind == "mul" and any(_is_made_of(arg, leaf) for arg in node.args):
                kept = next(arg for arg in node.args if _is_made_of(arg, leaf))
                if kept.shape == node.shape and not any(isinstance(plain(arg), Scalar) for arg in node.args):
                    yield tree.replaced("BIAS_NOT_SCALED", f"{name} was not scaled", {id(node): kept})
    for norm in new.norms:
        if tree.find(norm.shift) is None and size_of(norm.shift) == size_of(new.expr) and leaves(norm.shift):
            words = f"the shift of '{norm.name}' was added, which another branch has taken"
            yield Rewrite("SHIFT_EXTRA", words, Op("add", (new.expr, shaped(norm.shift, new.expr))))


def through_padding(new: NewTensor, linear: Linear) -> Iterator[Rewrite]:
    """A shift in the bias of a convolution with padding, as if the zeros of the border had it too."""
    if new.role != "bias" or new.expr.shape != (linear.channels,):
        return
    for norm in new.norms:
        if leaves(norm.shift) and size_of(norm.shift) == linear.in_channels and Tree(new.expr).find(norm.shift) is None:
            through = response(weights_of(linear), view(norm.shift, (linear.in_channels,)))
            words = f"the shift of '{norm.name}' was folded through zero padding, which it does not reach"
            yield Rewrite("BORDER", words, Op("add", (new.expr, through)))


def _is_summed(leaf: Leaf, tree: Tree) -> bool:
    return any(isinstance(node, Total) and leaf.tensor in leaves(node.of) for node in tree.nodes)


def _is_made_of(part: Expr, leaf: Leaf) -> bool:
    return set(leaves(part)) == {leaf.tensor}


def _unfolded(new: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """The tensor of the source, as if there had been no norm."""
    norms = _norm_keys(new)
    for node in tree.nodes:
        if isinstance(node, Leaf) and node.tensor.key not in norms and size_of(node) == size_of(new.expr):
            words = f"it was not folded: it is the source's '{node.tensor.name}'"
            yield Rewrite("NOT_FOLDED", words, shaped(node, new.expr))


def _branches(new: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """A term of a sum lost, counted twice, or of the wrong sign."""
    norms = _norm_keys(new)
    for node in tree.nodes:
        if not isinstance(node, Op) or node.kind not in ("add", "sub") or node.shape != new.expr.shape:
            continue
        for at, arg in enumerate(node.args):
            kept = node.args[1 - at]
            if kept.shape != node.shape or not leaves(arg) or not leaves(kept):
                continue
            is_identity = new.role == "weight" and all(tensor.key in norms for tensor in leaves(arg))
            what = "the branch of the norm alone" if is_identity else "a branch" if new.role == "weight" else "a term"
            yield tree.replaced("BRANCH_LOST", f"{what} of the sum was lost", {id(node): kept})
            twice = Op(node.kind, (*node.args[:at], Op("add", (arg, arg)), *node.args[at + 1 :]))
            yield tree.replaced("BRANCH_TWICE", f"{what} of the sum was counted twice", {id(node): twice})
            if at == 1:
                turned = Op("sub" if node.kind == "add" else "add", node.args)
                yield tree.replaced("BRANCH_SIGN", f"{what} of the sum had the wrong sign", {id(node): turned})


def _places(_: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """A small kernel one place off in a large one."""
    for node in tree.nodes:
        if not isinstance(node, Embed) or len(node.shape) < 3 or node.shape[:2] != node.of.shape[:2]:
            continue
        for axis in range(2, len(node.shape)):
            extent = (node.of.shape[axis] - 1) * node.step[axis] + 1
            for by in (1, -1):
                at = node.start[axis] + by
                if 0 <= at <= node.shape[axis] - extent:
                    start = (*node.start[:axis], at, *node.start[axis + 1 :])
                    moved = Embed(node.of, node.shape, start, node.step)
                    yield tree.replaced("KERNEL_OFF", "a kernel was put one place off", {id(node): moved})


def _constant_channel(_: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """The channel that carries a shift through padding without its number."""
    for node in tree.nodes:
        if isinstance(node, Join):
            for part in node.parts:
                core = plain(part)
                if isinstance(core, Given) and any(core.values):
                    yield tree.replaced("NO_CONSTANT", "the constant channel was not set", {id(core): full(0.0, core)})


def _border(_: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """The zeros of the border taken for data."""
    masks = [node for node in tree.nodes if isinstance(node, Given) and set(node.values) == {0.0, 1.0}]
    if masks:
        words = "the border was ignored: the shift was counted in the zeros of the padding"
        yield tree.replaced("BORDER", words, {id(mask): full(1.0, mask) for mask in masks})


def _divisions(_: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """A shift that stays before its scale, not divided by it."""
    for node in tree.nodes:
        if isinstance(node, Op) and node.kind == "div":
            above, below = node.args
            is_norm = isinstance(plain(below), Op | Leaf) and plain(below) != ONE
            if is_norm and not (isinstance(plain(below), Op) and _kind(plain(below)) == "sqrt") and leaves(above):
                words = "the shift was not divided by the scale that has gone elsewhere"
                yield tree.replaced("NOT_DIVIDED", words, {id(node): shaped(above, node)})


def _kind(node: Expr) -> str:
    return node.kind if isinstance(node, Op) else ""


def _slopes(new: NewTensor, tree: Tree) -> Iterator[Rewrite]:
    """The slope of channels that are turned over by a negative scale."""
    for node in tree.nodes:
        if new.role == "slope" and isinstance(node, Take) and isinstance(node.of, Join):
            words = "the slope was not inverted in the channels of negative scale"
            same = Take(node.of, node.axis, (0,) * len(node.indices))
            yield tree.replaced("SLOPE_KEPT", words, {id(node): same})
        elif isinstance(node, Given) and len(set(node.values)) == 2 and 1.0 in node.values and 0.0 not in node.values:
            words = "the slope was left out of the scale in the channels of negative scale"
            yield tree.replaced("SLOPE_NOT_APPLIED", words, {id(node): view(full(1.0, node), node.shape)})


Way = Callable[[NewTensor, Tree], Iterator[Rewrite]]
WAYS: tuple[Way, ...] = (
    _other_axis, _widened, _taps, _slices, _bias, _factors, _unfolded, _places, _constant_channel, _border, _divisions,
    _slopes,
)  # fmt: skip
