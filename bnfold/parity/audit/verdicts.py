"""The verdict on one tensor: nearest, consistent with rounding, or wrong; with the numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from bnfold.errors import ParityError
from bnfold.folding import algebra
from bnfold.folding.expressions import Array, Expr, size_of, spread, view
from bnfold.folding.facts import Linear, Norm
from bnfold.folding.onnx_edits import NewTensor
from bnfold.parity.audit.demand import Demand
from bnfold.parity.audit.rounding import room_of
from bnfold.parity.audit.sides import same_bits
from bnfold.parity.hypotheses import likely_cause
from bnfold.parity.weights.exact import FORMATS, Format
from bnfold.parity.weights.nearest import measure

Verdict: TypeAlias = Literal["unchanged", "nearest", "consistent with rounding", "wrong"]

_SHOWN = 5  # wrong channels that a sentence names
_FLOAT64_SLACK = 2.0**-45  # of a value that was computed in plain float64, relative to the sum of absolute terms


@dataclass(frozen=True)
class TensorAudit:
    """One tensor of the folded network. site: the linear of the original one that it belongs to.

    worst_ulp: the largest distance from the exact value, in units of its last place. roundings: c; share: the largest
    distance over c * u * sum|terms|, at most 1 where it is consistent. wrong: elements beyond it; channels: theirs.
    guessed: the linear was found by its order alone. barred: it took in a norm that no fold may take in there, and the
    distances are those from that fold.
    """

    tensor: str
    role: str
    site: str
    norms: tuple[str, ...]
    elements: int
    verdict: Verdict
    worst_ulp: float = 0.0
    not_nearest: int = 0
    roundings: int = 0
    share: float = 0.0
    wrong: int = 0
    channels: tuple[int, ...] = ()
    cause: str = ""
    barred: bool = False
    guessed: bool = False

    def sentence(self) -> str:
        """What is wrong with it, for a person."""
        head = f"tensor '{self.tensor}' ({self.role} of '{self.site}'"
        head += f", norms {', '.join(self.norms)}" if self.norms else ""
        head += ", matched by the order of the linears alone)" if self.guessed else ")"
        if self.barred and self.share <= 1:
            return f"{head}: all {self.elements} values are those of a fold that is none: {self.cause}"
        count = len(self.channels)
        shown = ", ".join(map(str, self.channels[:_SHOWN])) + (", ..." if count > _SHOWN else "")
        where = f" in channel{'s' if count > 1 else ''} {shown}" if count else ""
        ulps = f"{self.worst_ulp:.4g} ulp" if math.isfinite(self.worst_ulp) else "not finite"
        what = f"{self.wrong} of {self.elements} values{where} are wrong, the worst is {ulps}"
        if math.isfinite(self.worst_ulp):
            room = f"{self.share:.3g} times what rounding explains" if self.roundings else "no fold touches it"
            what += f" off ({room})"
        return f"{head}: {what}" + (f"; likely cause: {self.cause}" if self.cause else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "tensor": self.tensor, "role": self.role, "site": self.site, "norms": list(self.norms),
            "verdict": self.verdict, "elements": self.elements, "worst_ulp": self.worst_ulp,
            "not_nearest": self.not_nearest, "roundings": self.roundings, "share_of_bound": self.share,
            "wrong": self.wrong, "wrong_channels": list(self.channels), "cause": self.cause, "barred": self.barred,
            "guessed": self.guessed,
        }  # fmt: skip


def judge(demand: Demand, others: Sequence[Norm] = ()) -> TensorAudit:
    """Judge a tensor. others: the norms of the original network, for a cause. Raises ParityError for no real value."""
    array, names = demand.array, tuple(norm.name for norm in demand.norms)
    start = TensorAudit(
        demand.tensor, demand.role, demand.site, names, int(array.size), "unchanged", guessed=demand.guessed
    )
    original = demand.original
    if original is not None and same_bits(original.reshape(array.shape), array) and not demand.unfit:
        return start
    form = FORMATS.get(array.dtype.name)
    if form is None:
        raise ParityError(f"tensor '{demand.tensor}' has dtype {array.dtype.name}; expected a floating-point one")
    expr, shipped = _shaped(demand.expr, array)
    found = measure(expr, shipped)
    facts = {"worst_ulp": found.worst_ulp, "not_nearest": found.not_nearest}
    if found.not_nearest == 0 and not demand.unfit:
        return _with(start, verdict="nearest", **facts)
    share, wrong, roundings = _beyond(expr, shipped, form)
    facts |= {"share": share, "roundings": roundings}
    if not wrong.any() and not demand.unfit:
        return _with(start, verdict="consistent with rounding", **facts)
    is_as_taken = not wrong.any()
    if is_as_taken:
        wrong = np.ones(shipped.shape, np.bool_)
    return _with(
        start,
        verdict="wrong",
        wrong=int(wrong.sum()),
        channels=_channels(wrong, demand),
        barred=bool(demand.unfit),
        cause=demand.unfit or _cause(demand, expr, shipped, wrong, others),
        **facts,
    )


def _with(start: TensorAudit, **changes: Any) -> TensorAudit:
    return dataclasses.replace(start, **changes)


def _shaped(expr: Expr, array: Array) -> tuple[Expr, Array]:
    """Both in one shape."""
    if size_of(expr) == array.size:
        return expr, np.ascontiguousarray(array).reshape(expr.shape)
    return spread(view(expr, (1,) * array.ndim), array.shape), array


def _beyond(expr: Expr, shipped: Array, form: Format) -> tuple[float, Array, int]:
    """(largest distance over the bound, elements beyond it, c)."""
    room = room_of(expr, form)
    u = form.unit_roundoff
    gamma = room.roundings * u / (1 - room.roundings * u)
    value = np.broadcast_to(room.value, shipped.shape)
    with np.errstate(all="ignore"):
        if form.bits > 24:
            exact = algebra.evaluate(expr)
            rest = np.abs((exact.hi - shipped.astype(np.float64)) + exact.lo)
            bound = np.broadcast_to(gamma * room.size, shipped.shape)
        else:
            rest = np.abs(shipped.astype(np.float64) - value)
            bound = np.broadcast_to((gamma + _FLOAT64_SLACK * bool(gamma)) * room.size, shipped.shape)
        is_wrong = ~(rest <= bound) | ~np.isfinite(shipped.astype(np.float64))
        shares = np.where(bound > 0, rest / np.where(bound > 0, bound, 1.0), np.where(rest > 0, np.inf, 0.0))
    shares = np.where(np.isfinite(shipped.astype(np.float64)), shares, np.inf)
    return float(shares.max(initial=0.0)), is_wrong, room.roundings


def _channels(wrong: Array, demand: Demand) -> tuple[int, ...]:
    """Output channels with a wrong element."""
    index = np.argwhere(wrong)
    if not wrong.ndim or not len(index):
        return ()
    linear = demand.linear
    if demand.role == "weight" and linear is not None:
        return tuple(int(c) for c in np.unique(_output_channels(index, linear)))
    axis = 1 if demand.role == "constant" and wrong.ndim > 1 else 0
    return tuple(int(c) for c in np.unique(index[:, axis]))


def _output_channels(index: Array, linear: Linear) -> Array:
    if linear.out_first:
        return index[:, 0]
    per_group = linear.weight.shape[1]
    return index[:, 0] // max(1, linear.in_channels // linear.groups) * per_group + index[:, 1]


def _cause(demand: Demand, expr: Expr, shipped: Array, wrong: Array, others: Sequence[Norm]) -> str:
    """What is likely to have gone wrong, in words; empty where nothing that is known explains it."""
    if demand.guessed:
        return ""
    if demand.original is not None:
        return "it was changed, though no fold touches it"
    if not np.isfinite(shipped[wrong].astype(np.float64)).all():
        return f"not finite: something overflowed or was invalid when the fold was computed in {shipped.dtype.name}"
    new = NewTensor(demand.tensor, demand.role, demand.site, expr, demand.norms)
    found = likely_cause(new, shipped, others, wrong=wrong)
    return "" if found is None else f"{found.words} (explains {found.explained:.0%} of the wrong values)"
