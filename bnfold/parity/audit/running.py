"""T3 and T4 of an audit: both networks run, and compared with the float64 truth of the original one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.bundle.manifest import TensorSpec
from bnfold.errors import BnfoldError, ParityError
from bnfold.parity.decisions import decide
from bnfold.parity.report import Status, TierResult
from bnfold.parity.rerounding import answers_of_copies
from bnfold.parity.triangle import Corner, asked_again, compare, distances, worst_corner
from bnfold.probes import golden_inputs
from bnfold.runtime import open_session, run
from bnfold.samples import Samples

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[Any]]
Outputs = Mapping[str, Array]

# Times the factor of `verify`: a fold in the parameters' own dtype rounds each number several times, not once. Right
# folds of small networks by other tools have been 1.98 times as far from the truth as the unfolded network.
_ROOM = 2.0
_FEWEST = 4  # rows of a batch, however large
_ELEMENTS = 8 * 3 * 224 * 224  # of all rows of a batch together
TRIANGLE, DECISIONS = "oracle triangle", "decisions"


@dataclass(frozen=True, eq=False)
class Trial:
    """Two models and the inputs that they are run on. Both run with graph optimisations off.

    With them on, ONNX Runtime would fold the original one too, and change the folded one: the file is audited here,
    not what a runtime makes of it. samples: None for random inputs.
    """

    original: onnx.ModelProto
    folded: onnx.ModelProto
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    feeds: Mapping[str, str]
    names: Mapping[str, str]
    samples: Samples | None

    @cached_property
    def batches(self) -> tuple[Samples, ...]:
        """The inputs: samples or random ones, then hard ones; fewer of large ones, for the truth takes its time."""
        batches = golden_inputs(self.inputs, self.samples)
        if any(spec.shape[0] > 0 for spec in self.inputs):
            return batches
        return tuple(batch.rows(slice(0, _most(batch))) for batch in batches)

    @cached_property
    def truth(self) -> tuple[Outputs, ...]:
        """What the original network computes in float64."""
        from bnfold.parity.oracle import run_float64

        return tuple(run_float64(self.original, dict(batch.inputs)) for batch in self.batches)

    @cached_property
    def unfolded_answers(self) -> tuple[Outputs, ...]:
        """What the original network answers."""
        session = open_session(self.original.SerializeToString(), optimise=False)
        return tuple(run(session, batch.inputs) for batch in self.batches)

    @cached_property
    def folded_answers(self) -> tuple[Outputs, ...]:
        """What the folded network answers, under the names of the original one."""
        session = open_session(self.folded.SerializeToString(), optimise=False)
        return tuple(self._named(run(session, feeds)) for feeds in self._feeds())

    @cached_property
    def corners(self) -> tuple[Corner, ...]:
        """Both networks against the truth, an entry an output."""
        kinds = {spec.name for spec in self.outputs if spec.dtype.startswith(("float", "bfloat"))}
        sides = (self.truth, self.unfolded_answers, self.folded_answers)
        found = compare(*([{k: v for k, v in batch.items() if k in kinds} for batch in side] for side in sides))
        found = tuple(dataclasses.replace(corner, factor=_ROOM * corner.factor) for corner in found)
        return asked_again(found, self._copies)

    def _feeds(self) -> list[Mapping[str, Array]]:
        """The batches as the folded network takes them."""
        return [{self.feeds[name]: array for name, array in batch.inputs.items()} for batch in self.batches]

    def _named(self, answers: Outputs) -> Outputs:
        """Answers of the folded network under the names of the original one."""
        return {name: answers[other] for name, other in self.names.items()}

    def _copies(self) -> Iterator[list[Outputs]]:
        """What re-rounded copies of the folded network answer."""
        for answers in answers_of_copies(self.folded, self._feeds()):
            yield [self._named(batch) for batch in answers]

    @property
    def what(self) -> str:
        """The inputs, as a sentence names them."""
        rows = sum(len(batch) for batch in self.batches)
        return f"{rows} {'random and hard inputs' if self.samples is None else 'samples and hard inputs'}"


def _most(batch: Samples) -> int:
    """Rows that are run: all of small inputs, eight of a colour image of 224 pixels."""
    row = sum(array[:1].size for array in batch.inputs.values())
    return max(_FEWEST, _ELEMENTS // max(1, row))


def check_triangle(trial: Trial) -> TierResult:
    """T3: the folded network is as near to the truth as the original one."""
    try:
        corners = trial.corners
    except BnfoldError as problem:
        return TierResult("T3", TRIANGLE, "cannot tell", "could not be carried out", {}, (str(problem),))
    if not corners:
        return TierResult("T3", TRIANGLE, "cannot tell", "no output is a floating-point one")
    worst = worst_corner(corners)
    findings = tuple(corner.sentence() for corner in corners if not corner.holds)
    failing = any(not corner.holds and not corner.doubt for corner in corners)
    status: Status = "holds" if not findings else "fails" if failing else "cannot tell"
    headline = f"from the float64 truth on {trial.what}: {distances(worst, names=('FOLDED', 'ORIGINAL'))}"
    rows = tuple(
        {
            "output": corner.output, "elements": corner.elements, "original_rms": corner.unfolded_rms,
            "folded_rms": corner.folded_rms, "original_error": corner.unfolded_error,
            "folded_error": corner.folded_error, "ratio": corner.ratio, "holds": corner.holds,
        }
        for corner in corners
    )  # fmt: skip
    summary = {"ratio": worst.ratio, "factor": worst.factor, "inputs": sum(len(batch) for batch in trial.batches)}
    return TierResult("T3", TRIANGLE, status, headline, summary, findings, rows)


def decided(trial: Trial) -> str | None:
    """The output whose largest element is an answer: the first, if it is (N, classes) of floats; None for no such."""
    first = trial.outputs[0] if trial.outputs else None
    if first is None or len(first.shape) != 2 or first.shape[1] in (0, 1) or not first.dtype.startswith("float"):
        return None
    return first.name


def check_decisions(trial: Trial, output: str) -> TierResult:
    """T4: the same class comes first."""
    try:
        before = np.concatenate([batch[output] for batch in trial.unfolded_answers])
        after = np.concatenate([batch[output] for batch in trial.folded_answers])
        truth = np.concatenate([batch[output] for batch in trial.truth])
        noise = next((2 * corner.error_limit for corner in trial.corners if corner.output == output), 0.0)
        if before.shape != after.shape:
            shape = f"shape {list(after.shape)} in FOLDED"
            raise ParityError(f"output '{output}' has {shape}; expected {list(before.shape)}, as ORIGINAL gives")
        found = decide(before, after, _labels(trial), noise=noise, truth=lambda rows: np.asarray(truth[rows]))
    except BnfoldError as problem:
        return TierResult("T4", DECISIONS, "cannot tell", "could not be carried out", {}, (str(problem),))
    headline = f"same top-1 on {found.rows - len(found.disagreements)} of {found.rows} ({trial.what})"
    if found.unfolded_accuracy is not None and found.folded_accuracy is not None:
        headline += f"; {found.folded_accuracy:.2%} right FOLDED, {found.unfolded_accuracy:.2%} ORIGINAL"
    summary = {
        "rows": found.rows, "disagreements": len(found.disagreements), "excused": found.excused, "ties": found.ties,
        "original_accuracy": found.unfolded_accuracy, "folded_accuracy": found.folded_accuracy,
    }  # fmt: skip
    return TierResult("T4", DECISIONS, "holds" if found.holds else "fails", headline, summary, found.sentences())


def _labels(trial: Trial) -> Array | None:
    """The labels, where every row has one: hard inputs have none."""
    known = [batch.labels for batch in trial.batches if batch.labels is not None]
    return np.concatenate(known) if known and len(known) == len(trial.batches) else None
