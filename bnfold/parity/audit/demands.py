"""What a matching demands of the numbers of the folded network, tensor by tensor.

A linear of the folded network with the affine steps that are left behind it must compute what the linear of the
original one does with its own steps. Steps that both have at the end are the same and stay out of it; the rest of the
original's is what the fold took in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from bnfold.folding.expressions import (
    ONE,
    ZERO,
    Array,
    Expr,
    Given,
    Leaf,
    Permute,
    Scalar,
    div,
    mul,
    size_of,
    sub,
    view,
)  # fmt: skip
from bnfold.folding.facts import Linear, Norm
from bnfold.folding.onnx_edits import Role
from bnfold.folding.weights import Weights, mapped_behind, weights_of
from bnfold.parity.audit.demand import Demand, Demands, fitted, stored_in
from bnfold.parity.audit.matching import Link, Matching
from bnfold.parity.audit.sides import Side, same_bits
from bnfold.parity.audit.steps import Steps, computed, parted


def demands_of(left: Side, right: Side, matching: Matching) -> Demands:
    """The demands of every link and of every constant that a fold made."""
    found = Demands()
    done: set[tuple[object, ...]] = set()
    for link in matching.links:
        taken, left_over, kept = parted(left, right, link)
        if not link.guessed:
            found.kept.update({norm.id: norm for norm, _ in kept})
        key = (
            link.before.id if link.before else link.left.source,
            link.after.id if link.after else link.right.source,
            *(n.id for n in taken),
            0,
            *(n.id for n in left_over),
        )
        if key in done:
            continue
        done.add(key)
        found.tensors.extend(computed(left, link, kept))
        if isinstance(link.before, Linear) and isinstance(link.after, Linear):
            demands = found if not link.guessed else Demands()
            _Site(left, right, link.before, link.after, taken, left_over).into(demands)
            if link.guessed:
                found.tensors += [dataclasses.replace(demand, guessed=True) for demand in demands.tensors]
        elif taken or left_over:
            Steps(left, right, link, taken, left_over).into(found)
    for stored, node in matching.stored:
        new = stored.new
        found.tensors.append(Demand(stored.value, new.role, node.label, stored.array, stored.expr, new.norms))
    return found


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
        stray = next((norm for norm in self.new if not self._is_over_channels(norm)), None)
        if stray is not None:
            found.gaps.append(f"{stray.label} behind {self.after.label} does not run over its channels")
            return
        wanted = self._wanted()
        pieces = list(self._pieces())
        if len(pieces) != len(self.new) + (self.after.bias is not None):
            self._rescaled(found)
            return
        found.tensors.append(self._weight(wanted))
        found.tensors.extend(self._biases(wanted, pieces))

    def _is_over_channels(self, norm: Norm) -> bool:
        """True for a step behind the folded linear that is one number, or one for each of its channels."""
        sizes = {size_of(part) for part in (norm.scale, norm.shift)} - {1}
        axes = {norm.axis, self.after.axis} - {None}
        return not sizes or (sizes == {self.after.channels} and len(axes) < 2)

    def _wanted(self) -> Weights:
        """The exact weight and bias: the linear's own, and every step taken in after the other."""
        w = weights_of(self.before)
        for norm in self.taken:
            scale, shift = (fitted(part, w.channels) for part in (norm.scale, norm.shift))
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
            yield linear.bias.name, full, fitted(view(Leaf(linear.bias), (array.size,)), linear.channels), linear.beta
        for norm in self.new:
            step = norm.steps[0] if len(norm.steps) == 1 else None
            tensor = stored_in(step.by) if step is not None and step.kind in ("add", "sub") else None
            if step is None or norm.scale != ONE or tensor is None:
                return
            array = tensor[1].reshape(-1)
            full = array if array.size == linear.channels else np.broadcast_to(array, (linear.channels,))
            yield tensor[0], full, fitted(step.by, linear.channels), 1.0 if step.kind == "add" else -1.0

    def _biases(self, wanted: Weights, pieces: Sequence[tuple[str, Array, Expr, float]]) -> Iterator[Demand]:
        channels = (self.before.channels,)
        pieces = [piece for piece in pieces if piece[3] != 0]  # Gemm takes beta = 0 times its bias
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
        elif judged[3] != 1.0:
            total = div(total, Scalar(judged[3]))
        bias = self.before.bias
        if not own and len(pieces) == 1 and bias is not None and self.before.beta == judged[3]:
            total = fitted(view(Leaf(bias), (size_of(Leaf(bias)),)), channels[0])
        yield self._demand(judged[0], "bias", judged[1], total)

    def _is_source(self, array: Array) -> bool:
        """True for numbers that the original network has here, bit for bit."""
        known = [self.before.bias.load().reshape(-1)] if self.before.bias is not None else []
        for norm in self.taken:
            found = [stored_in(step.by) for step in norm.steps if step.kind in ("add", "sub")]
            known += [stored[1].reshape(-1) for stored in found if stored is not None]
        return any(same_bits(part, array) for part in known)

    def _rescaled(self, found: Demands) -> None:
        """The folded network has factors of its own behind the linear: a norm was rewritten, not taken in."""
        plain = weights_of(self.before)
        same = (
            self.before.bias is None
            or self.after.bias is None
            or same_bits(self.before.bias.load(), self.after.bias.load())
        )
        if (self.before.bias is None) != (self.after.bias is None) or not same:
            found.gaps.append(f"{self.after.label} has factors behind it and a bias of its own")
            return
        unmoved = _Site(self.left, self.right, self.before, self.after, (), ())
        found.tensors.append(unmoved._weight(plain))
        link = Link(self.left.chain(self.before.output), self.right.chain(self.after.output), self.before, self.after)
        Steps(self.left, self.right, link, self.taken, self.new).into(found)

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
