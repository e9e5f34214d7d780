"""What the weight certificate says: of each new tensor, and of the fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bnfold.parity.hypotheses import Cause, shown
from bnfold.parity.weights.nearest import Distances

_LISTED = 64  # channels of a tensor that a document names


@dataclass(frozen=True)
class TensorVerdict:
    """One new tensor against its exact value. linear: who reads it. worst_channel: of the worst element.

    channels: those with a wrong element. cause: what explains the wrong elements, None where nothing known does.
    """

    tensor: str
    role: str
    linear: str
    norms: tuple[str, ...]
    distances: Distances
    worst_channel: int
    channels: tuple[int, ...] = ()
    cause: Cause | None = None

    @property
    def nearest(self) -> bool:
        """True when every element is the nearest float to its exact value."""
        return self.distances.not_nearest == 0

    def sentence(self) -> str:
        """What is wrong with the tensor, where, and why most likely, for a person."""
        found = self.distances
        where = f" in channel{'s' * (len(self.channels) > 1)} {shown(self.channels)}" if self.channels else ""
        verb = "is" if found.not_nearest == 1 else "are"
        cause = ""
        if self.cause:
            cause = f"; {'' if self.cause.is_rounding else 'likely cause: '}{self.cause.words}"
        return (
            f"tensor '{self.tensor}' ({self.role} of '{self.linear}', folded with {', '.join(self.norms)}): "
            f"{found.not_nearest} of {found.elements} values{where} {verb} not the nearest to the exact fold; the "
            f"worst, at {list(found.worst_index)}, is {found.worst_ulp:.4g} ulp off (expected at most 0.5){cause}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready numbers. bad_channels: the first of them."""
        cause = self.cause
        return {
            "tensor": self.tensor, "role": self.role, "linear": self.linear, "norms": list(self.norms),
            "elements": self.distances.elements, "not_nearest": self.distances.not_nearest,
            "worst_ulp": self.distances.worst_ulp, "worst_index": list(self.distances.worst_index),
            "worst_channel": self.worst_channel, "bad_channels": list(self.channels[:_LISTED]),
            "bad_channel_count": len(self.channels),
            "cause": cause and {"code": cause.code, "words": cause.words, "explained": cause.explained},
        }  # fmt: skip


@dataclass(frozen=True)
class Certificate:
    """The verdict on a folded model. structure: differences from the expected graph, one sentence each."""

    tensors: tuple[TensorVerdict, ...]
    structure: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """True when the graph is the expected one and every number the nearest."""
        return not self.structure and all(tensor.nearest for tensor in self.tensors)

    @property
    def worst_ulp(self) -> float:
        """The largest distance of any element from its exact value, in ulp; 0 when nothing was folded."""
        return max((tensor.distances.worst_ulp for tensor in self.tensors), default=0.0)

    def findings(self) -> tuple[str, ...]:
        """Everything that is wrong, one sentence each."""
        return self.structure + tuple(tensor.sentence() for tensor in self.tensors if not tensor.nearest)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready numbers, one object a tensor."""
        rows = [tensor.to_dict() for tensor in self.tensors]
        return {"tensors": rows, "structure": list(self.structure)}
