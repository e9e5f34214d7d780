"""`audit` itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bnfold.bundle.manifest import TensorSpec
from bnfold.folding.onnx_file import to_proto
from bnfold.parity.audit.comparing import Comparison, compare_graphs
from bnfold.parity.audit.matching import Ends
from bnfold.parity.audit.opening import Opened, ends_of, inputs_of, open_folded, open_original, specs_of
from bnfold.parity.audit.report import AuditReport, weights_tier
from bnfold.parity.audit.running import Trial, check_decisions, check_triangle, decided
from bnfold.parity.report import TierResult
from bnfold.samples import Samples, load_samples

_NO_DECISION = "T4 is left out: the first output is not (N, classes)"


def audit(
    folded: Any,
    against: Any,
    *,
    data: Path | str | tuple[Any, Any] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
    network: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> AuditReport:
    """Certify a network that was folded elsewhere, or say what is wrong with it.

    folded: an .onnx (path, bytes, onnx.ModelProto, onnx_ir.Model) or a torch.nn.Module. against: the unfolded network
    that it was made of: the same, or a checkpoint folder, or `module:factory` with `weights` and `input_shape`. A
    torch.nn.Module there needs `example_inputs`, a checkpoint of the user's own code `network`. data: samples to run
    both on (an .npz, a folder of images, or a pair of arrays); random inputs otherwise. progress: told what is being
    done.

    Raises FoldError, DataError or ExportError for what cannot be opened, ParityError where the two have other inputs
    or outputs, or are swapped.
    """
    say = progress or (lambda _: None)
    say("opening both networks")
    original = open_original(
        against, example_inputs=example_inputs, weights=weights, shape=input_shape, network=network
    )
    found = open_folded(folded, original, example_inputs)
    ends = ends_of(original, found)
    say("matching both graphs and judging every tensor")
    comparison = compare_graphs(original.model, found.model, ends)
    say("running both networks, and the original one in float64")
    trial = _trial(original, found, ends, data)
    tiers = [check_triangle(trial)]
    output = decided(trial)
    if output is not None:
        tiers.append(check_decisions(trial, output))
    return AuditReport(
        folded=found.name,
        original=original.name,
        tiers=(_weights(comparison, tiers), *tiers),
        tensors=comparison.tensors,
        norms={"taken": comparison.taken, "kept": comparison.kept, "lost": comparison.lost},
        environment=dict(_environment()),
        notes=tuple(_notes(comparison, output)),
    )


def _notes(comparison: Comparison, output: str | None) -> Iterator[str]:
    if output is None:
        yield _NO_DECISION
    if comparison.computed:
        count = len(comparison.computed)
        yield f"FOLDED computes {count} weights and biases in its graph; they are judged as ONNX Runtime computes them"


def _weights(comparison: Comparison, tiers: Sequence[TierResult]) -> TierResult:
    return weights_tier(comparison, differs=any(tier.status == "fails" for tier in tiers))


def _trial(original: Opened, folded: Opened, ends: Ends, data: Path | str | tuple[Any, Any] | None) -> Trial:
    inputs = _narrowed(specs_of(inputs_of(original.model)), specs_of(inputs_of(folded.model)), ends.inputs)
    samples = _samples(original, inputs, data)
    return Trial(
        original=to_proto(original.model),
        folded=to_proto(folded.model),
        inputs=inputs,
        outputs=specs_of(original.model.graph.outputs),
        feeds=ends.inputs,
        names=ends.outputs,
        samples=samples,
    )


def _narrowed(
    inputs: Sequence[TensorSpec], others: Sequence[TensorSpec], feeds: Mapping[str, str]
) -> tuple[TensorSpec, ...]:
    """The inputs that both networks take: a size that either of them fixes is fixed."""
    known = {spec.name: spec for spec in others}
    found = []
    for spec in inputs:
        other = known[feeds[spec.name]].shape
        pairs = zip(spec.shape, other, strict=True) if other else ((size, -1) for size in spec.shape)
        found.append(dataclasses.replace(spec, shape=tuple(b if a < 0 else a for a, b in pairs)))
    return tuple(found)


def _samples(original: Opened, inputs: Sequence[Any], data: Path | str | tuple[Any, Any] | None) -> Samples | None:
    source = original.source
    if data is None and source is not None and source.held_out is not None:
        data = source.held_out()
    if data is None:
        return None
    return load_samples(
        data,
        inputs,
        preprocessing=source.preprocessing if source is not None else None,
        labels=source.labels if source is not None else None,
    )


def _environment() -> Iterator[tuple[str, Any]]:
    for package in ("bnfold", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu"):
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    yield "python", platform.python_version()
    yield "machine", platform.machine()
