"""`assert_parity`: the tiers of the suite on two networks, without a bundle."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bnfold.errors import BnfoldError, DataError, ParityError
from bnfold.folding.plan import make_plan
from bnfold.parity.audit.comparing import compare_graphs
from bnfold.parity.audit.opening import Opened, ends_of, inputs_of, specs_of
from bnfold.parity.audit.report import weights_tier
from bnfold.parity.decisions import decide
from bnfold.parity.local.checking import ASSUMPTIONS, check_local
from bnfold.parity.report import ParityReport, Status, TierResult
from bnfold.parity.triangle import Corner, asked_again, compare, distances, worst_corner
from bnfold.parity.weights.certificate import certify, expect
from bnfold.testing.batches import Array, Batch, batches_of, labels_of
from bnfold.testing.networks import Network, OnnxNetwork, Outputs, network_of
from bnfold.testing.proof import ParityFailure, ParityProof

TIERS = ("T1", "T2", "T3", "T4")
_TITLES = {"T1": "weight certificate", "T2": "local bound", "T3": "oracle triangle", "T4": "decisions"}
_KINDS = ("logits", "probabilities", "raw")
# Times the factor of `verify`, as in an audit: a fold in the parameters' own dtype rounds each number several times.
_ROOM = 2.0
_ROWS = 32  # of a batch that T2 looks at


def assert_parity(
    model: Any, folded: Any, inputs: Any, *, labels: Any = None, tiers: Sequence[str] | None = None,
    output_kind: str | None = None, name: str | None = None,
) -> ParityProof:  # fmt: skip
    """Prove that one network is another one with its batch norm folded; raise ParityFailure where it is not.

    model, folded: a torch.nn.Module in eval mode, an ExportedProgram, an onnx.ModelProto, a path to .onnx, or bytes;
    neither is changed. inputs: a batch, which is an array or tensor, a tuple of arguments, or arrays by name; or a list
    of batches. labels: class numbers of all rows. tiers: of "T1", "T2", "T3", "T4"; by default all that apply.
    output_kind: "logits" or "probabilities" (of axis 1 of the first output), or "raw", which decides nothing.
    name: of the proof in a report.

    Raises ParityFailure (an AssertionError) for a fold that is wrong or that cannot be told to be right, TypeError or
    BnfoldError for arguments that do not fit.
    """
    __tracebackhide__ = True
    try:
        proof = prove_parity(model, folded, inputs, labels=labels, tiers=tiers, output_kind=output_kind, name=name)
    except BnfoldError as problem:  # a sentence about the arguments: pytest need not show how it came about
        raise problem.with_traceback(None)  # noqa: B904 (the same one)
    if proof.holds is not True:
        raise ParityFailure(proof)
    return proof


def prove_parity(
    model: Any, folded: Any, inputs: Any, *, labels: Any = None, tiers: Sequence[str] | None = None,
    output_kind: str | None = None, name: str | None = None,
) -> ParityProof:  # fmt: skip
    """As `assert_parity`, and gives the proof whatever it says."""
    wanted = _wanted(tiers)
    if output_kind not in (None, *_KINDS):
        raise DataError(f"output_kind is {output_kind!r}, expected one of {', '.join(_KINDS)}")
    left, right = network_of(model, "model"), network_of(folded, "folded")
    batches = batches_of(inputs, left.names)
    trial = _Trial(left, right, batches, labels_of(labels, batches), output_kind)
    results, notes = _results(trial, wanted, given=tiers is not None)
    names = (left.label, right.label if right.label != left.label else f"the folded {right.label}")
    return ParityProof(*names, ParityReport(name or f"{names[1]} against {names[0]}", None, results, notes=notes))


def _wanted(tiers: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(tiers, str) or (tiers is not None and not tiers):
        raise DataError(f"tiers is {tiers!r}, expected a tuple of some of {', '.join(TIERS)}")
    unknown = [tier for tier in tiers or () if tier not in TIERS]
    if unknown:
        raise DataError(f"tiers holds {unknown[0]!r}, expected some of {', '.join(TIERS)}")
    return tuple(tier for tier in TIERS if tiers is None or tier in tiers)


@dataclass(frozen=True, eq=False)
class _Trial:
    """Two networks on the same inputs; everything is computed when it is first asked for."""

    model: Network
    folded: Network
    batches: tuple[Batch, ...]
    labels: Array | None
    kind: str | None

    @cached_property
    def opened(self) -> tuple[Opened, Opened]:
        """Both networks as ONNX IR. Raises BnfoldError."""
        return self.model.opened(self.batches[0]), self.folded.opened(self._ordered(self.batches[0]))

    @cached_property
    def truth(self) -> tuple[Outputs, ...]:
        return tuple(self.model.truth(batch) for batch in self.batches)

    @cached_property
    def before(self) -> tuple[Outputs, ...]:
        return tuple(self.model.run(batch) for batch in self.batches)

    @cached_property
    def after(self) -> tuple[Outputs, ...]:
        """Of the folded network, under the names of the model's outputs."""
        return tuple(
            _renamed(self.folded.run(self._ordered(batch)), unfolded)
            for batch, unfolded in zip(self.batches, self.before, strict=True)
        )

    @cached_property
    def corners(self) -> tuple[Corner, ...]:
        """Both networks against the truth, an entry a floating-point output."""
        floats = {name for name, array in self.before[0].items() if _is_float(array)}
        truth = [_renamed(true, before) for true, before in zip(self.truth, self.before, strict=True)]
        sides = (truth, self.before, self.after)
        found = compare(*([{k: v for k, v in one.items() if k in floats} for one in side] for side in sides))
        found = tuple(dataclasses.replace(corner, factor=_ROOM * corner.factor) for corner in found)
        try:
            return asked_again(found, self._copies)
        except BnfoldError:  # no graph whose numbers could be rounded once more
            return found

    def _copies(self) -> Iterator[list[Outputs]]:
        """What re-rounded copies of the folded network answer."""
        from bnfold.folding.onnx_file import to_proto
        from bnfold.parity.rerounding import answers_of_copies

        graph = OnnxNetwork(to_proto(self.opened[1].model), "folded")
        feeds = [graph.feeds(self._ordered(batch)) for batch in self.batches]
        for answers in answers_of_copies(graph.proto, feeds):
            yield [_renamed(answer, like) for answer, like in zip(answers, self.before, strict=True)]

    @property
    def rows(self) -> int:
        return sum(len(batch[0]) for batch in self.batches)

    @property
    def decided(self) -> str | None:
        """The output that decides: the first, where it is (N, classes) of floats."""
        name, array = next(iter(self.before[0].items()))
        fits = array.ndim == 2 and array.shape[1] > 1 and _is_float(array)
        if not fits and self.kind in ("logits", "probabilities"):
            raise DataError(f"output '{name}' has shape {list(array.shape)}, expected (N, classes) for {self.kind}")
        return name if fits and self.kind != "raw" else None

    @property
    def goes_by_name(self) -> bool:
        """True where both take their inputs by name; a module takes them by their places."""
        return isinstance(self.model, OnnxNetwork) and isinstance(self.folded, OnnxNetwork)

    def _ordered(self, batch: Batch) -> Batch:
        """The arrays as the folded network takes them: by name where both have the same names, else by position."""
        ours, theirs = self.model.names, self.folded.names
        if not self.goes_by_name or ours is None or theirs is None or set(ours) != set(theirs):
            return batch
        named = dict(zip(ours, batch, strict=True))
        return tuple(named[name] for name in theirs)


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _renamed(outputs: Outputs, like: Outputs) -> Outputs:
    """Outputs under the names of others: the same names, or the same places. Raises ParityError for another number."""
    if outputs.keys() == like.keys():
        return outputs
    if len(outputs) != len(like):
        raise ParityError(f"folded has {len(outputs)} outputs, the model {len(like)}; expected the same number")
    return dict(zip(like, outputs.values(), strict=True))


def _results(trial: _Trial, wanted: Collection[str], *, given: bool) -> tuple[tuple[TierResult, ...], tuple[str, ...]]:
    """The tiers in order, and why others were left out. given: the tiers were asked for by name."""
    found: dict[str, TierResult] = {}
    notes: list[str] = []
    _ = trial.before  # inputs that do not fit the model are no failure of the fold
    for tier in ("T3", "T4", "T1", "T2"):  # T1 wants to know whether the outputs differ
        if tier not in wanted:
            continue
        begun = time.monotonic()
        try:
            result = _CHECKS[tier](trial, found)
        except _NotThere as reason:
            if not given:
                notes.append(f"{tier} is left out: {reason}")
                continue
            result = _untold(tier, str(reason))
        except (DataError, TypeError):
            raise
        except BnfoldError as problem:
            result = _untold(tier, str(problem))
        found[tier] = dataclasses.replace(result, seconds=time.monotonic() - begun)
    return tuple(found[tier] for tier in TIERS if tier in found), tuple(notes)


class _NotThere(Exception):
    """A tier that does not apply to these networks."""


def _untold(tier: str, why: str) -> TierResult:
    return TierResult(tier, _TITLES[tier], "cannot tell", "could not be carried out", {}, (why,))


def _weights(trial: _Trial, found: Mapping[str, TierResult]) -> TierResult:
    original, folded = trial.opened
    differs = any(tier.status == "fails" for tier in found.values())
    ends = ends_of(original, folded) if trial.goes_by_name else None
    is_torch = not any(isinstance(one, OnnxNetwork) for one in (trial.model, trial.folded))
    comparison = compare_graphs(original.model, folded.model, ends, is_torch=is_torch)
    result = weights_tier(comparison, differs=differs)
    # The cause stands in the findings as text; in a row the schema of `verify` has an object for it.
    rows = ({key: value for key, value in one.to_dict().items() if key != "cause"} for one in comparison.tensors)
    return dataclasses.replace(result, details=tuple(rows))


def _sites(trial: _Trial, _: Mapping[str, TierResult]) -> TierResult:
    """T2, where the fold is this package's own: with its default moves, or with all of them."""
    try:
        original, folded = trial.opened
    except BnfoldError as problem:
        raise _NotThere("the networks are not to be had as ONNX graphs") from problem
    from bnfold.folding.onnx_graph import read

    graph = read(original.model)
    for moves in ("default", "all"):
        expectation = expect(original.model, plan=make_plan(graph, moves=moves))
        if not certify(expectation, folded.model, only=(), explain=False).structure:
            break
    else:
        raise _NotThere("the graph of folded is not, node for node, what a fold by bnfold leaves")
    specs = specs_of(inputs_of(original.model))
    is_free = all(spec.shape[:1] == (-1,) for spec in specs)
    rows = slice(0, _ROWS) if is_free else slice(None)
    names = [spec.name for spec in specs]
    feeds = [
        {name: array[rows].astype(spec.dtype) for name, array, spec in zip(names, batch, specs, strict=True)}
        for batch in trial.batches
    ]
    local = check_local(original.model, folded.model, expectation, feeds, is_free=is_free)
    bad = [one for one in local.results if one.bad]
    worst = max((one.worst_ratio for one in local.results), default=0.0)
    open_ = any(one.problem for one in local.results)
    apart = tuple(
        f"output '{name}': the fold is not exact, {gap:.3g} of its size off" for name, gap in local.apart.items()
    )
    status: Status = "fails" if bad or apart else "cannot tell" if open_ else "holds"
    headline = f"{len(local.results)} sites and regions, worst difference {worst:.2g} times its rounding bound"
    headline += f"; {len(bad)} beyond it, the first '{bad[0].linear}'" if bad else ""
    findings = (*apart, *(one.sentence() for one in local.results if not one.holds))
    details = tuple(dataclasses.asdict(one) for one in local.results)
    summary = {"sites": len(local.results), "bad_sites": len(bad), "worst_ratio": worst}
    return TierResult("T2", _TITLES["T2"], status, headline, summary, findings, details, ASSUMPTIONS)


def _triangle(trial: _Trial, _: Mapping[str, TierResult]) -> TierResult:
    corners = trial.corners
    if not corners:
        return TierResult("T3", _TITLES["T3"], "cannot tell", "no output is a floating-point one")
    worst = worst_corner(corners)
    findings = tuple(corner.sentence() for corner in corners if not corner.holds)
    failing = any(not corner.holds and not corner.doubt for corner in corners)
    status: Status = "holds" if not findings else "fails" if failing else "cannot tell"
    headline = f"from the float64 truth on {trial.rows} inputs: {distances(worst)}"
    details = tuple(
        {"output": one.output, "elements": one.elements, "unfolded_rms": one.unfolded_rms, "folded_rms": one.folded_rms,
         "unfolded_error": one.unfolded_error, "folded_error": one.folded_error, "ratio": one.ratio, "holds": one.holds}
        for one in corners
    )  # fmt: skip
    summary = {"ratio": worst.ratio, "factor": worst.factor, "inputs": trial.rows}
    return TierResult("T3", _TITLES["T3"], status, headline, summary, findings, details)


def _decisions(trial: _Trial, _: Mapping[str, TierResult]) -> TierResult:
    output = trial.decided
    if output is None:
        raise _NotThere("the first output is not (N, classes)" if trial.kind != "raw" else "the outputs are raw")
    before, after = (np.concatenate([batch[output] for batch in side]) for side in (trial.before, trial.after))
    if before.shape != after.shape:
        raise ParityError(f"output '{output}' of folded has shape {list(after.shape)}, expected {list(before.shape)}")
    true = np.concatenate([_renamed(one, like)[output] for one, like in zip(trial.truth, trial.before, strict=True)])
    noise = next((2 * corner.error_limit for corner in trial.corners if corner.output == output), 0.0)
    found = decide(before, after, trial.labels, noise=noise, truth=lambda rows: np.asarray(true[rows]),
                   output_kind=trial.kind or "logits")  # fmt: skip
    headline = f"same top-1 on {found.rows - len(found.disagreements)} of {found.rows} inputs"
    if found.unfolded_accuracy is not None and found.folded_accuracy is not None:
        headline += f"; {found.folded_accuracy:.2%} right folded, {found.unfolded_accuracy:.2%} unfolded"
    status: Status = "holds" if found.holds else "fails"
    return TierResult("T4", _TITLES["T4"], status, headline, found.to_dict(), found.sentences())


_Check = Callable[[_Trial, Mapping[str, TierResult]], TierResult]
_CHECKS: Mapping[str, _Check] = {"T1": _weights, "T2": _sites, "T3": _triangle, "T4": _decisions}
