"""T2, the local bound: everywhere a fold changed something, the two computations differ by no more than rounding can.

Sites, linears with the norms right behind them, have a bound in closed form (`at_sites`, `bounds`); whatever else an
edit changed is a region between two points where both graphs are equal, whose error is carried along operator by
operator (`at_regions`, `running`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnfold.folding.expressions import Array
from bnfold.parity.local.at_regions import check_regions
from bnfold.parity.local.at_sites import check_sites, compare
from bnfold.parity.local.results import SiteResult, worse
from bnfold.parity.weights.certificate import Expectation

__all__ = ["ASSUMPTIONS", "Local", "SiteResult", "check_local", "check_sites", "compare"]

ASSUMPTIONS = (
    "every sum is a sum of products in some order (no Winograd, no FFT)",
    "sums are kept in float32, in float64 for float64, and rounded once when they are stored",
    "unit roundoff 2^-24 in float32, 2^-11 in float16, 2^-8 in bfloat16, 2^-53 in float64",
    "subnormal numbers are rounded, not flushed",
    "the coefficients of an interpolation are the same on both sides, not negative, of sum 1 up to rounding",
)
"""What the bounds rest on; ONNX Runtime's CPU provider does so."""


@dataclass(frozen=True)
class Local:
    """T2 on a fold. results: sites and regions, in the order of the graph. unbounded: new tensors without a place.

    apart: outputs that the fold, carried out in float64 with nothing rounded, does not give as the reference does.
    """

    results: tuple[SiteResult, ...]
    unbounded: tuple[SiteResult, ...]
    apart: Mapping[str, float]

    def and_on(self, other: Local) -> Local:
        """Both on more inputs: the worse of either result."""
        both = zip(self.results, other.results, strict=True)
        return Local(tuple(worse(*pair) for pair in both), self.unbounded, {**self.apart, **other.apart})


def check_local(
    reference: ir.Model, folded: ir.Model, expectation: Expectation, batches: Sequence[Mapping[str, Array]],
    *, is_free: bool = True, threads: int = 1, operands: float = 0.0,
) -> Local:  # fmt: skip
    """Bound every edit of a fold on some inputs. batches: inputs of the network by name; is_free: their size is.

    operands: unit roundoff to which the factors of products are rounded first (TF32: 2**-11). Raises ParityError when
    the reference cannot be run on the batches.
    """
    sites = check_sites(reference, folded, expectation.sites, batches, threads=threads, operands=operands)
    found = check_regions(reference, folded, expectation, batches, is_free=is_free, threads=threads, operands=operands)
    order = _order(folded)
    last = len(order)
    placed = [(order.get(site.weight, last), result) for site, result in zip(expectation.sites, sites, strict=True)]
    placed += [(order.get(first, last), result) for first, result in found.results]
    placed.sort(key=lambda entry: entry[0])
    return Local(tuple(result for _, result in placed), found.unbounded, found.apart)


def _order(model: ir.Model) -> dict[str | None, int]:
    """Where each value is read first."""
    read = [value.name for node in model.graph for value in node.inputs if value is not None]
    return {name: at for at, name in reversed(list(enumerate(read)))}
