"""What each tier says of a wrong fold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.errors import BnfoldError
from bnfold.folding import onnx_graph
from bnfold.folding.expressions import size_of
from bnfold.folding.onnx_file import from_proto, to_proto
from bnfold.parity.decisions import decide
from bnfold.parity.evidence import Evidence
from bnfold.parity.local.at_regions import check_regions, points_of
from bnfold.parity.local.checking import SiteResult, check_local, check_sites
from bnfold.parity.local.points import Points
from bnfold.parity.mutants.making import Mutant
from bnfold.parity.mutants.specimens import Specimen
from bnfold.parity.oracle import run_float64
from bnfold.parity.triangle import compare, worst_corner
from bnfold.parity.weights.certificate import Expectation, certify, expect
from bnfold.runtime import open_session, run

Array = np.ndarray[Any, np.dtype[Any]]
Batch = Mapping[str, Array]

TIERS = ("T1", "T2", "T3", "T4")

_ROWS = 64  # inputs of a batch for T3 and T4
_LOCAL_ROWS = 4  # for T2
_SMALL = 1 << 20  # elements of all new tensors up to which more of them are tried
_SIDE = 6  # of an axis whose size is free


@dataclass(frozen=True)
class Verdict:
    """What a tier says of a fold. figure: its number, the larger the worse; said: that in a few words."""

    caught: bool
    said: str
    figure: float = 0.0


@dataclass(frozen=True)
class Pair:
    """A right fold and what the tiers need to judge wrong ones by it.

    decided: the output whose largest element is the answer, each row flat; None where there is none. move: the one
    that the network is there for; empty for a bundle. sites: tensors of a kind that each way to be wrong is tried on.
    """

    name: str
    move: str
    reference: ir.Model
    folded: ir.Model
    expectation: Expectation
    batches: Sequence[Batch]
    truth: Sequence[Batch]
    unfolded: Sequence[Batch]
    decided: str | None
    is_free: bool = True
    threads: int = 1
    noise: float = 0.0
    sites: int = 1
    off: frozenset[str] = field(default_factory=frozenset)

    def trial(self, mutant: Mutant) -> dict[str, Verdict]:
        """Every tier on a mutant. A tier that cannot be carried out has not caught it."""
        tiers = {"T1": self._weights, "T2": self._local}
        found = {tier: _tried(check, mutant) for tier, check in tiers.items() if tier not in self.off}
        if "T3" in self.off:
            return found
        return found | self._outputs(mutant.model)

    def control(self) -> dict[str, Verdict]:
        """Every tier on the right fold, which none may catch."""
        return self.trial(Mutant("none", "NONE", self.move, "", self.folded, is_graph=True))

    def _weights(self, mutant: Mutant) -> Verdict:
        only = None if mutant.is_graph else {mutant.tensor}
        found = certify(self.expectation, mutant.model, only=only, explain=False)
        worst, wrong = found.worst_ulp, sum(tensor.distances.not_nearest for tensor in found.tensors)
        said = "the graph differs" if found.structure and not wrong else f"{worst:.3g} ulp, {wrong} wrong"
        return Verdict(not found.holds, said, math.inf if found.structure else worst)

    def _local(self, mutant: Mutant) -> Verdict:
        results = self._local_results(mutant)
        worst = max((one.worst_ratio for one in results), default=0.0)
        return Verdict(any(one.bad for one in results), f"{worst:.3g}" if results else "not bounded", worst)

    def _local_results(self, mutant: Mutant) -> Sequence[SiteResult]:
        """T2 where the tensor is read: elsewhere both sides are as they were, each site having the same inputs."""
        if mutant.is_graph:
            found = check_local(
                self.reference, mutant.model, self.expectation, self._few, is_free=self.is_free, threads=self.threads
            )
            return found.results
        sites = [site for site in self.expectation.sites if mutant.tensor in (site.weight, site.bias)]
        if sites:
            return check_sites(self.reference, mutant.model, sites, self._few, threads=self.threads)
        regions = check_regions(
            self.reference, mutant.model, self.expectation, self._few, is_free=self.is_free, threads=self.threads,
            points=self._points,
        )  # fmt: skip
        return [result for _, result in regions.results]

    @cached_property
    def _few(self) -> list[Batch]:
        """The first rows of every batch."""
        rows = slice(0, _LOCAL_ROWS if self.is_free else None)
        return [{name: array[rows] for name, array in batch.items()} for batch in self.batches]

    @cached_property
    def _points(self) -> Points:
        """Where the exact fold agrees with the reference: the same for every mutant."""
        return points_of(self.reference, self.expectation, self._few, is_free=self.is_free)

    def _outputs(self, model: ir.Model) -> dict[str, Verdict]:
        try:
            session = open_session(to_proto(model).SerializeToString(), optimise=True, threads=self.threads)
            answers = [run(session, batch) for batch in self.batches]
            corners = compare(self.truth, self.unfolded, answers)
        except BnfoldError as problem:
            broken = Verdict(True, f"does not run: {problem}"[:60], math.inf)
            return {"T3": broken, "T4": broken}
        worst = worst_corner(corners)
        ratio = math.inf if math.isnan(worst.ratio) else worst.ratio
        found = {"T3": Verdict(any(not corner.holds for corner in corners), f"{ratio:.3g}", ratio)}
        if self.decided is not None:
            found["T4"] = self._decisions(answers)
        return found

    def _decisions(self, answers: Sequence[Batch]) -> Verdict:
        sides = [np.concatenate([batch[str(self.decided)] for batch in side]) for side in
                 (self.unfolded, answers, self.truth)]  # fmt: skip
        if len({side.shape for side in sides}) > 1:
            return Verdict(True, "another shape", 1.0)
        unfolded, folded, truth = (side.reshape(len(side), -1) for side in sides)
        found = decide(unfolded, folded, noise=self.noise, truth=lambda rows: truth[rows])
        return Verdict(not found.holds, f"{found.agreement:.1%}", 1 - found.agreement)


def _tried(check: Any, mutant: Mutant) -> Verdict:
    try:
        verdict: Verdict = check(mutant)
        return verdict
    except BnfoldError as problem:
        return Verdict(False, f"cannot tell: {problem}"[:60])


def pair_of_specimen(specimen: Specimen, seed: int = 0) -> Pair:
    """A specimen folded by all moves, on random inputs."""
    model = specimen.model(seed=seed)
    reference = from_proto(model)
    folded, report, _ = onnx_graph.fold(reference, moves="all")
    (value,) = model.graph.input
    sizes = [dim.dim_value or _SIDE for dim in value.type.tensor_type.shape.dim]
    x = {"input": np.random.default_rng(seed + 1).normal(size=(_ROWS, *sizes[1:])).astype(np.float32)}
    truth, unfolded = run_float64(model, x), run(open_session(model.SerializeToString(), optimise=False), x)
    expectation = expect(reference, report)
    return Pair(
        specimen.name, specimen.move, reference, folded, expectation, [x], [truth], [unfolded], decided="output"
    )


def pair_of_bundle(evidence: Evidence) -> Pair:
    """The models of a bundle, on the first rows of its golden vectors."""
    manifest = evidence.bundle.manifest
    is_free = all(spec.shape[:1] == (-1,) for spec in manifest.inputs)
    rows = slice(0, _ROWS if is_free else None)
    batches = [{name: array[rows] for name, array in golden.inputs.items()} for golden in evidence.goldens]
    truth = [
        {name: array[rows] if is_free else array for name, array in golden.truth.items()} for golden in evidence.goldens
    ]
    unfolded = [run(evidence.reference_session, batch) for batch in batches]
    is_small = sum(size_of(new.expr) for new in evidence.expectation.tensors) <= _SMALL
    return Pair(
        evidence.bundle.path.parent.name, "", evidence.reference, evidence.folded, evidence.expectation, batches, truth,
        unfolded, evidence.decided, is_free, evidence.threads, evidence.noise, sites=2 if is_small else 1,
    )  # fmt: skip
