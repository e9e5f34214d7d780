"""What a matching demands of the numbers of the folded network, tensor by tensor.

A linear of the folded network with the affine steps that are left behind it must compute what the linear of the
original one does with its own steps. Steps that both have at the end are the same and stay out of it; the rest of the
original's is what the fold took in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from bnfold.folding import algebra
from bnfold.folding.expressions import (
    ONE,
    ZERO,
    Array,
    Expr,
    Given,
    Leaf,
    Permute,
    Scalar,
    Spread,
    View,
    add,
    div,
    leaves,
    mul,
    shape_of,
    size_of,
    spread,
    sub,
    view,
)  # fmt: skip
from bnfold.folding.facts import Linear, Norm
from bnfold.folding.onnx_edits import Role
from bnfold.folding.weights import Weights, mapped_behind, weights_of
from bnfold.parity.audit.matching import Link, Matching
from bnfold.parity.audit.sides import Side, same_bits

_NEAR = 1e-3  # of the largest number: a constant that is stored by one network and computed by the other


@dataclass(frozen=True, eq=False)
class Demand:
    """A tensor of the folded network and what it must be. array: (its shape), zeros where it is missing.

    site: the linear of the original network. norms: those it took in. linear: of the folded network, for channels.
    unfit: why no fold may do that, where none may. before: the original linear, where the demand is one on a linear.
    """

    tensor: str
    role: Role
    site: str
    array: Array
    expr: Expr
    norms: tuple[Norm, ...] = ()
    linear: Linear | None = None
    unfit: str = ""
    before: Linear | None = None

    @property
    def original(self) -> Array | None:
        """The tensor of the original network that it must be, bit for bit; None for one that is computed."""
        found = None if isinstance(self.expr, Scalar) else _stored(self.expr)
        return None if found is None or found[1].size != self.array.size else found[1]


@dataclass
class Demands:
    """All demands. gaps: steps that went, or came, where nothing is known to take them in or give them."""

    tensors: list[Demand] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    kept: dict[str, Norm] = field(default_factory=dict)
    taken: dict[str, Norm] = field(default_factory=dict)
    lost: dict[str, Norm] = field(default_factory=dict)


def demands_of(left: Side, right: Side, matching: Matching) -> Demands:
    """The demands of every link and of every constant that a fold made."""
    found = Demands()
    done: set[tuple[object, ...]] = set()
    for link in matching.links:
        taken, left_over, kept = _parted(left, right, link)
        found.kept.update({norm.id: norm for norm, _ in kept})
        key = (
            link.after.id if link.after else link.right.source,
            *(n.id for n in taken),
            0,
            *(n.id for n in left_over),
        )
        if key in done:
            continue
        done.add(key)
        found.tensors.extend(_computed(left, link, kept))
        if isinstance(link.before, Linear) and isinstance(link.after, Linear):
            _Site(left, right, link.before, link.after, taken, left_over).into(found)
        elif taken or left_over:
            _Steps(left, right, link, taken, left_over).into(found)
    for stored, node in matching.stored:
        new = stored.new
        found.tensors.append(Demand(stored.value, new.role, node.label, stored.array, stored.expr, new.norms))
    return found


Both: TypeAlias = tuple[Norm, Norm]


def _parted(left: Side, right: Side, link: Link) -> tuple[tuple[Norm, ...], tuple[Norm, ...], tuple[Both, ...]]:
    """(steps of the original that are gone, steps of the folded one that are new, steps that both have at the end)."""
    before, after = list(link.left.norms), list(link.right.norms)
    kept: list[Both] = []
    while (
        before
        and after
        and (left.content(before[-1]) == right.content(after[-1]) or _is_computed(left, before[-1], after[-1]))
    ):
        kept.append((before.pop(), after.pop()))
    return tuple(before), tuple(after), tuple(kept)


def _is_computed(left: Side, before: Norm, after: Norm) -> bool:
    """True for one step whose constant the original network computes and the folded one has stored."""
    if len(before.steps) != 1 or len(after.steps) != 1 or before.refusal or after.refusal:
        return False
    (first,), (second,) = before.steps, after.steps
    stored = _stored(second.by)
    is_made = any(leaf.name in left.made for leaf in leaves(first.by))
    if first.kind != second.kind or before.axis != after.axis or is_made or stored is None or _stored(first.by):
        return False
    if size_of(first.by) != size_of(second.by):
        return False
    wanted = algebra.magnitude(first.by).reshape(-1)
    with np.errstate(all="ignore"):
        return bool((np.abs(stored[1].reshape(-1) - wanted) <= _NEAR * np.abs(wanted).max(initial=0.0)).all())


def _computed(left: Side, link: Link, kept: Sequence[Both]) -> Iterator[Demand]:
    """Constants that the original network computes, stored by the folded one."""
    for before, after in kept:
        stored = _stored(after.steps[0].by) if after.steps else None
        if stored is None or _stored(before.steps[0].by):
            continue
        where = link.before.label if link.before is not None else f"the input '{link.left.source}'"
        expr = left.exact(before.steps[0].by)
        role: Role = "scale" if before.steps[0].kind in ("mul", "div") else "shift"
        yield Demand(stored[0], role, where, stored[1].reshape(expr.shape), expr, (before,))


class _Site:
    """A linear of each network with the steps behind it that differ."""

    def __init__(
        self, left: Side, right: Side, before: Linear, after: Linear, taken: tuple[Norm, ...], new: tuple[Norm, ...]
    ) -> None:
        self.left, self.right, self.before, self.after, self.taken, self.new = left, right, before, after, taken, new

    def into(self, found: Demands) -> None:
        """Add what this site demands."""
        target = found.taken if not self._barred() else found.lost
        target.update({norm.id: norm for norm in self.taken})
        sizes = {size_of(part) for norm in self.taken for part in (norm.scale, norm.shift)} - {1}
        if sizes - {self.before.channels}:
            found.gaps.append(f"{self.after.label}: {self._barred()}")
            return
        wanted = self._wanted()
        pieces = list(self._pieces())
        if len(pieces) != len(self.new) + (self.after.bias is not None):
            self._rescaled(found)
            return
        found.tensors.append(self._weight(wanted))
        found.tensors.extend(self._biases(wanted, pieces))

    def _wanted(self) -> Weights:
        """The exact weight and bias: the linear's own, and every step taken in after the other."""
        w = weights_of(self.before)
        for norm in self.taken:
            scale, shift = (_fitted(part, w.channels) for part in (norm.scale, norm.shift))
            w = mapped_behind(w, scale, shift)
        return w

    def _barred(self) -> str:
        """Why no fold may take these steps into this linear."""
        for norm in self.taken:
            refusal = norm.refusal or norm.obstacle
            if refusal is not None:
                return f"{norm.label} may not be folded: {refusal.detail}"
            sizes = {size_of(part) for part in (norm.scale, norm.shift)} - {1}
            if sizes and None not in (norm.axis, self.before.axis) and norm.axis != self.before.axis:
                return (
                    f"{norm.label} runs over axis {norm.axis}, the channels of {self.before.label} over axis "
                    f"{self.before.axis}: taken in as though they were one axis"
                )
            if sizes and sizes != {self.before.channels}:
                return f"{norm.label} has {max(sizes)} channels, {self.before.label} {self.before.channels}"
        return ""

    def expression(self, role: Role) -> Expr | None:
        """The exact weight, in the layout of the folded network, or the exact bias."""
        wanted = self._wanted()
        return self._weight(wanted).expr if role == "weight" else wanted.bias

    def _weight(self, wanted: Weights) -> Demand:
        shipped = self.after.weight
        expr = div(wanted.weight, Scalar(self.after.alpha)) if self.after.alpha != 1 else wanted.weight
        if not any(norm.scale != ONE for norm in self.taken) and self.before.alpha == self.after.alpha:
            expr = Leaf(self.before.weight)
        if self.before.window is None and self.before.out_first != self.after.out_first:
            expr = Permute(expr, (1, 0))
        return self._demand(shipped.name, "weight", shipped.load(), expr)

    def _pieces(self) -> Iterator[tuple[str, Array, Expr, float]]:
        """(tensor, numbers, what it is, its factor) of everything that the folded network adds behind the weight."""
        linear = self.after
        if linear.bias is not None:
            array = linear.bias.load().reshape(-1)
            full = array if array.size == linear.channels else np.broadcast_to(array, (linear.channels,))
            yield linear.bias.name, full, _fitted(view(Leaf(linear.bias), (array.size,)), linear.channels), linear.beta
        for norm in self.new:
            step = norm.steps[0] if len(norm.steps) == 1 else None
            tensor = _stored(step.by) if step is not None and step.kind in ("add", "sub") else None
            if step is None or norm.scale != ONE or tensor is None:
                return
            array = tensor[1].reshape(-1)
            full = array if array.size == linear.channels else np.broadcast_to(array, (linear.channels,))
            yield tensor[0], full, _fitted(step.by, linear.channels), 1.0 if step.kind == "add" else -1.0

    def _biases(self, wanted: Weights, pieces: Sequence[tuple[str, Array, Expr, float]]) -> Iterator[Demand]:
        channels = (self.before.channels,)
        total = wanted.bias if wanted.bias is not None else Given((0.0,) * channels[0], channels)
        if not pieces:
            if wanted.bias is not None:
                weight = self.after.weight
                missing = np.zeros(channels, weight.load().dtype)
                yield self._demand(f"(no bias beside {weight.name})", "bias", missing, total)
            return
        own = [norm for norm in self.taken if norm.shift != ZERO or norm.scale != ONE]
        loose = [piece for piece in pieces if own and not self._is_source(piece[1])]
        judged = loose[0] if loose else pieces[-1]
        for piece in pieces:
            if piece is not judged:
                total = sub(total, mul(piece[2], Scalar(piece[3])))
        if judged[3] == -1.0:
            total = sub(ZERO, total)
        elif judged[3] == 0.0:
            return
        elif judged[3] != 1.0:
            total = div(total, Scalar(judged[3]))
        bias = self.before.bias
        if not own and len(pieces) == 1 and bias is not None and self.before.beta == judged[3]:
            total = _fitted(view(Leaf(bias), (size_of(Leaf(bias)),)), channels[0])
        yield self._demand(judged[0], "bias", judged[1], total)

    def _is_source(self, array: Array) -> bool:
        """True for numbers that the original network has here, bit for bit."""
        known = [self.before.bias.load().reshape(-1)] if self.before.bias is not None else []
        for norm in self.taken:
            found = [_stored(step.by) for step in norm.steps if step.kind in ("add", "sub")]
            known += [stored[1].reshape(-1) for stored in found if stored is not None]
        return any(same_bits(part, array) for part in known)

    def _rescaled(self, found: Demands) -> None:
        """The folded network has factors of its own behind the linear: a norm was rewritten, not taken in."""
        plain = weights_of(self.before)
        same = self.before.bias is None or self.after.bias is None or _same(self.before.bias, self.after.bias)
        if (self.before.bias is None) != (self.after.bias is None) or not same:
            found.gaps.append(f"{self.after.label} has factors behind it and a bias of its own")
            return
        unmoved = _Site(self.left, self.right, self.before, self.after, (), ())
        found.tensors.append(unmoved._weight(plain))
        link = Link(self.left.chain(self.before.output), self.right.chain(self.after.output), self.before, self.after)
        _Steps(self.left, self.right, link, self.taken, self.new).into(found)

    def _demand(self, tensor: str, role: Role, array: Array, expr: Expr) -> Demand:
        norms = tuple(norm for norm in self.taken if norm.is_norm) or self.taken
        exact = self.left.exact(expr)
        return Demand(tensor, role, self.before.name, array, exact, norms, self.after, self._barred(), self.before)


def misplaced(left: Side, demand: Demand, norm: Norm) -> Expr | None:
    """What a tensor of a linear would be had it taken in a norm that stands elsewhere, or over another axis."""
    before, after = demand.before, demand.linear
    sizes = {size_of(norm.scale), size_of(norm.shift)} - {1}
    if before is None or after is None or sizes - {before.channels} or demand.role not in ("weight", "bias"):
        return None
    try:
        found = _Site(left, left, before, after, (norm,), ()).expression(demand.role)
    except (ValueError, IndexError):
        return None
    return found if found is not None and size_of(found) == demand.array.size else None


class _Steps:
    """Steps behind what is no linear, or that stay steps."""

    def __init__(self, left: Side, right: Side, link: Link, taken: tuple[Norm, ...], new: tuple[Norm, ...]) -> None:
        self.left, self.right, self.link, self.taken, self.new = left, right, link, taken, new

    def into(self, found: Demands) -> None:
        """Add what these steps demand; steps that went without a trace are a gap."""
        where = self.link.before.label if self.link.before is not None else f"the input '{self.link.left.source}'"
        named = " and ".join(norm.label for norm in self.taken) or "nothing"
        axes = {norm.axis for norm in (*self.taken, *self.new) if size_of(norm.scale) > 1 or size_of(norm.shift) > 1}
        parts = _apart(self.new)
        if not self.new or not self.taken or parts is None or len(axes) > 1:
            found.lost.update({norm.id: norm for norm in self.taken})
            new = " and ".join(norm.label for norm in self.new) or "nothing"
            found.gaps.append(f"behind {where} FOLDED has {new} where ORIGINAL has {named}")
            return
        found.taken.update({norm.id: norm for norm in self.taken})
        scale: Expr = ONE
        shift: Expr = ZERO
        for norm in self.taken:
            scale, shift = mul(norm.scale, scale), add(mul(norm.scale, shift), norm.shift)
        for role, expr in (("scale", scale), ("shift", shift)):
            given = parts.get(role)
            if given is None:
                neutral = 1.0 if role == "scale" else 0.0
                given = f"(no {role} behind {where})", np.full(max(1, size_of(expr)), neutral, self._dtype())
            name, array = given
            flat = array.reshape(-1)
            if flat.size == 1 and size_of(expr) > 1:
                flat = np.broadcast_to(flat, (size_of(expr),))
            exact = _fitted(self.left.exact(expr), flat.size)
            barred = next((norm.refusal.detail for norm in self.taken if norm.refusal), "")
            found.tensors.append(
                Demand(name, role, where, flat, exact, self.taken, None, barred)  # type: ignore[arg-type]
            )

    def _dtype(self) -> np.dtype[np.generic]:
        return next((leaf.load().dtype for norm in self.taken for leaf in norm.constants), np.dtype(np.float32))


def _apart(norms: Sequence[Norm]) -> dict[str, tuple[str, Array]] | None:
    """The stored scale and shift of `x * scale + shift`, however it is written; None for anything else."""
    if len(norms) == 1 and norms[0].statistics is not None:
        return _reduced(norms[0])
    found: dict[str, tuple[str, Array]] = {}
    for norm in norms:
        step = norm.steps[0] if len(norm.steps) == 1 else None
        if step is None or step.kind not in ("mul", "add"):
            return None
        role = "scale" if step.kind == "mul" else "shift"
        stored = _stored(step.by)
        if stored is None or role in found or (role == "scale" and found):
            return None
        found[role] = stored
    return found


def _reduced(norm: Norm) -> dict[str, tuple[str, Array]] | None:
    """BatchNormalization with mean 0, variance 1 and epsilon 0 is a scale and a shift."""
    stated = norm.statistics
    if stated is None:
        return None
    parts = [_stored(part) for part in (stated.gamma, stated.beta, stated.mean, stated.variance)]
    if any(part is None for part in parts) or stated.eps != ZERO:
        return None
    gamma, beta, mean, variance = (part for part in parts if part is not None)
    if (mean[1] != 0).any() or (variance[1] != 1).any():
        return None
    return {"scale": gamma, "shift": beta}


def _stored(expr: Expr) -> tuple[str, Array] | None:
    """The tensor that an expression is, under whatever shape (a matrix that was turned over included)."""
    match expr:
        case Leaf(tensor):
            return tensor.name, tensor.load()
        case Scalar(value):
            return f"(the number {value:g})", np.asarray([value], np.float64)
        case View(of, _):
            return _stored(of)
        case Spread(of, shape) if size_of(of) == size_of(expr) and len(of.shape) == len(shape):
            return _stored(of)
        case Permute(Leaf(tensor), perm):
            return tensor.name, tensor.load().transpose(perm)
    return None


def _same(first: object, second: object) -> bool:
    return same_bits(first.load(), second.load())  # type: ignore[attr-defined]


def _fitted(expr: Expr, channels: int) -> Expr:
    """An expression over channels, spread where it is one number."""
    shape = shape_of(expr)
    if shape == (channels,) or not shape:
        return expr
    if size_of(expr) == channels:
        return view(expr, (channels,))
    return spread(view(expr, (1,)), (channels,)) if size_of(expr) == 1 else expr
