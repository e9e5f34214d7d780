"""Affine steps that stay steps: kept with a constant that one network computes, or written in another way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from bnfold.folding import algebra
from bnfold.folding.expressions import ONE, ZERO, Array, Expr, add, leaves, mul, size_of
from bnfold.folding.facts import Norm
from bnfold.folding.onnx_edits import Role
from bnfold.parity.audit.demand import Demand, Demands, fitted, stored_in
from bnfold.parity.audit.matching import Link
from bnfold.parity.audit.sides import Side

_NEAR = 1e-3  # of the largest number: a constant that is stored by one network and computed by the other

Both: TypeAlias = tuple[Norm, Norm]


def parted(left: Side, right: Side, link: Link) -> tuple[tuple[Norm, ...], tuple[Norm, ...], tuple[Both, ...]]:
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
    stored = stored_in(second.by)
    is_made = any(leaf.name in left.made for leaf in leaves(first.by))
    if first.kind != second.kind or before.axis != after.axis or is_made or stored is None or stored_in(first.by):
        return False
    if size_of(first.by) != size_of(second.by):
        return False
    wanted = algebra.magnitude(first.by).reshape(-1)
    with np.errstate(all="ignore"):
        return bool((np.abs(stored[1].reshape(-1) - wanted) <= _NEAR * np.abs(wanted).max(initial=0.0)).all())


def computed(left: Side, link: Link, kept: Sequence[Both]) -> Iterator[Demand]:
    """Constants that the original network computes, stored by the folded one."""
    for before, after in kept:
        stored = stored_in(after.steps[0].by) if after.steps else None
        if stored is None or stored_in(before.steps[0].by):
            continue
        where = link.before.label if link.before is not None else f"the input '{link.left.source}'"
        expr = left.exact(before.steps[0].by)
        role: Role = "scale" if before.steps[0].kind in ("mul", "div") else "shift"
        yield Demand(stored[0], role, where, stored[1].reshape(expr.shape), expr, (before,))


class Steps:
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
            exact = fitted(self.left.exact(expr), flat.size)
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
        stored = stored_in(step.by)
        if stored is None or role in found or (role == "scale" and found):
            return None
        found[role] = stored
    return found


def _reduced(norm: Norm) -> dict[str, tuple[str, Array]] | None:
    """BatchNormalization with mean 0, variance 1 and epsilon 0 is a scale and a shift."""
    stated = norm.statistics
    if stated is None:
        return None
    parts = [stored_in(part) for part in (stated.gamma, stated.beta, stated.mean, stated.variance)]
    if any(part is None for part in parts) or stated.eps != ZERO:
        return None
    gamma, beta, mean, variance = (part for part in parts if part is not None)
    if (mean[1] != 0).any() or (variance[1] != 1).any():
        return None
    return {"scale": gamma, "shift": beta}
