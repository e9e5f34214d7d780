"""What the tiers look at: the two models of a bundle, its golden vectors, and what the models answer on this host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.bundle import Bundle, Golden
from bnfold.bundle.manifest import MODEL, REFERENCE, SIDECAR
from bnfold.errors import FoldError, ParityError
from bnfold.folding.facts import Graph
from bnfold.folding.onnx_file import from_proto, load_model
from bnfold.folding.onnx_graph import read
from bnfold.folding.plan import Plan
from bnfold.folding.report import FoldReport
from bnfold.parity.decisions import Decisions, decide
from bnfold.parity.rerounding import answers_of_copies
from bnfold.parity.triangle import Corner, asked_again, compare
from bnfold.parity.weights.certificate import Certificate, Expectation, certify, expect, plan_of
from bnfold.runtime import Device, open_session, run

Array = np.ndarray[Any, np.dtype[Any]]
Outputs: TypeAlias = Mapping[str, Array]
Session: TypeAlias = Any  # ONNX Runtime's, which has no types

_TEXTS = ("name", "kind", "outcome", "reason", "target", "detail", "needs", "where")  # of a row of the fold report
_CHUNK = 256  # rows run at a time where the batch size is free


@dataclass(frozen=True)
class Evidence:
    """One bundle under test. Everything is computed when it is first asked for, and once."""

    bundle: Bundle
    device: Device = "cpu"
    threads: int = 1

    @cached_property
    def reference_proto(self) -> onnx.ModelProto:
        """The unfolded model, its tensors in it."""
        return self._proto(REFERENCE)

    @cached_property
    def folded_proto(self) -> onnx.ModelProto:
        """The folded model, its tensors in it."""
        return self._proto(MODEL)

    @cached_property
    def reference(self) -> ir.Model:
        """The unfolded model."""
        return self._model(REFERENCE)

    @cached_property
    def folded(self) -> ir.Model:
        """The folded model."""
        return self._model(MODEL)

    @cached_property
    def report(self) -> FoldReport:
        """The fold report of the bundle. Raises ParityError when fold.json holds none."""
        try:
            found = FoldReport.from_dict(self.bundle.fold_report())
        except FoldError as problem:
            raise ParityError(f"fold.json: {problem}") from None
        texts = (getattr(row, name) for row in found.norms for name in _TEXTS)
        if not all(isinstance(text, str) for text in texts):
            raise ParityError("fold.json has a row with a value that is no text; expected texts; fold again")
        return found

    @cached_property
    def plan(self) -> Plan:
        """What may be folded in the reference; its norms bear the names of the fold report."""
        return plan_of(self.graph, self.report)

    @cached_property
    def graph(self) -> Graph:
        """The facts of the reference."""
        return read(self.reference)

    @cached_property
    def expectation(self) -> Expectation:
        """What the folded model must look like."""
        return expect(self.reference, self.report, self.plan)

    @cached_property
    def certificate(self) -> Certificate:
        """The weight certificate, judged by the bundle's own fold report."""
        return certify(self.expectation, self.folded)

    @cached_property
    def goldens(self) -> tuple[Golden, ...]:
        """The golden vectors."""
        return self.bundle.goldens()

    @cached_property
    def reference_session(self) -> Session:
        """The reference with graph optimisations off: with them on, the runtime would fold it too."""
        return self._session(REFERENCE, optimise=False)

    @cached_property
    def folded_session(self) -> Session:
        """The folded model with the session options that it is served with."""
        return self._session(MODEL, optimise=True)

    @cached_property
    def unfolded_answers(self) -> tuple[Outputs, ...]:
        """What the reference answers to each golden vector."""
        return tuple(run(self.reference_session, golden.inputs) for golden in self.goldens)

    @cached_property
    def folded_answers(self) -> tuple[Outputs, ...]:
        """What the folded model answers to each golden vector."""
        return tuple(run(self.folded_session, golden.inputs) for golden in self.goldens)

    @cached_property
    def corners(self) -> tuple[Corner, ...]:
        """Both models against the stored truth, an entry an output; what is beyond its limit was asked again."""
        return self.judged(self.folded_answers)

    def judged(self, folded: Sequence[Outputs]) -> tuple[Corner, ...]:
        """T3 on what a folded model answers to the golden vectors, here or stored."""
        found = compare([golden.truth for golden in self.goldens], self.unfolded_answers, folded)
        inputs = [golden.inputs for golden in self.goldens]
        return asked_again(
            found,
            lambda: answers_of_copies(self.folded_proto, inputs, device=self.device, threads=self.threads),
        )  # fmt: skip

    @cached_property
    def noise(self) -> float:
        """The distance within which the models' own rounding cannot tell two logits apart."""
        limits = [corner.error_limit for corner in self.corners if corner.output == self.decided]
        return 2 * limits[0] if limits and math.isfinite(limits[0]) else 0.0

    @cached_property
    def decided(self) -> str | None:
        """The output whose largest element is an answer: the first, if it is (N, classes) and not raw."""
        manifest = self.bundle.manifest
        first = manifest.outputs[0]
        return first.name if manifest.output_kind != "raw" and len(first.shape) == 2 else None

    def decisions(self, goldens: Sequence[int]) -> Decisions:
        """Top-1 on some of the golden vectors, by their position. Accuracies where all of them have labels."""
        name = self.decided or ""
        chosen = [self.goldens[at] for at in goldens]
        unfolded = np.concatenate([self.unfolded_answers[at][name] for at in goldens])
        folded = np.concatenate([self.folded_answers[at][name] for at in goldens])
        truth = np.concatenate([golden.truth[name] for golden in chosen])
        known = [golden.labels for golden in chosen if golden.labels is not None]
        labels = np.concatenate(known) if len(known) == len(chosen) else None
        kind = self.bundle.manifest.output_kind
        return decide(unfolded, folded, labels, noise=self.noise, truth=lambda rows: truth[rows], output_kind=kind)

    def run_rows(self, session: Session, inputs: Mapping[str, Array], output: str) -> Array:
        """One output for any number of rows, run in batches of the network's own size where that is fixed."""
        fixed = max(self.bundle.manifest.inputs[0].shape[:1], default=-1)
        size = fixed if fixed > 0 else _CHUNK
        rows = len(next(iter(inputs.values())))
        parts: list[Array] = []
        for begin in range(0, rows, size):
            count = min(size, rows - begin)
            # A batch of a fixed size is filled up with rows whose answers are cut off again.
            index = np.arange(begin, begin + (size if fixed > 0 else count)) % rows
            answers = run(session, {name: array[index] for name, array in inputs.items()})
            parts.append(answers[output][:count])
        return np.concatenate(parts)

    # A model with a sidecar is opened where it lies; any other one by the very bytes whose hash was checked.

    @property
    def _has_sidecar(self) -> bool:
        return SIDECAR in self.bundle.manifest.files

    def _proto(self, file: str) -> onnx.ModelProto:
        model: onnx.ModelProto = onnx.ModelProto.FromString(self.bundle.read(file))
        if self._has_sidecar:
            onnx.external_data_helper.load_external_data_for_model(model, str(self.bundle.path))
        return model

    def _model(self, file: str) -> ir.Model:
        if self._has_sidecar:
            return load_model(self.bundle.path / file)
        return from_proto(onnx.ModelProto.FromString(self.bundle.read(file)), file)

    def _session(self, file: str, *, optimise: bool) -> Session:
        source = self.bundle.path / file if self._has_sidecar else self.bundle.read(file)
        return open_session(source, optimise=optimise, device=self.device, threads=self.threads)
