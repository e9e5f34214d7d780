"""From a source to a proven deployment bundle: export, fold, golden vectors, truth, proof, one atomic write."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.bundle import Bundle, BundleDraft, Golden, TensorSpec, write_bundle
from bnfold.documents import parse_object
from bnfold.errors import DataError, FoldError, ParityError
from bnfold.folding.report import FoldReport
from bnfold.preprocessing import Preprocessing
from bnfold.probes import golden_inputs
from bnfold.reference import fold_reference, reference_of
from bnfold.samples import Array, Samples, load_samples, read_labels
from bnfold.sources import Source, open_source

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_TOOLS = ("bnfold", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxscript", "torch")

_SLACK = 1e-3  # beyond 0 and 1 for a probability, which half precision rounds

Progress = Callable[[str], None]


def build_bundle(
    source: Any,
    destination: Path | str,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    data: Path | str | tuple[Any, Any] | None = None,
    labels: Sequence[str] | Path | str | None = None,
    preprocessing: Preprocessing | Path | str | None = None,
    output_kind: str | None = None,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
    network: str | None = None,
    allow_refused: bool = False,
    keep: Sequence[str] = (),
    moves: str | Sequence[str] = "default",
    progress: Progress | None = None,
) -> Bundle:
    """Fold a network, prove the fold, and write it as the next version under `destination` (or as that version).

    source, example_inputs, weights, input_shape, network: see `bnfold.sources.open_source`. data: samples for golden
    vectors and decisions (see `bnfold.samples.load_samples`); a checkpoint brings its own held-out ones. labels: the
    classes of the output, or a file with one a line. preprocessing: how an image becomes the input, or a JSON file.
    output_kind: "logits", "probabilities" or "raw". keep, moves: as in `bnfold.fold`; fold.json says what they were.

    Raises FoldError when a norm is refused (unless `allow_refused`), ParityError when the fold cannot be proven,
    BundleError when the version exists; then nothing is written.
    """
    say = progress or (lambda _: None)
    opened = open_source(
        source, example_inputs=example_inputs, weights=weights, input_shape=input_shape, network=network
    )
    say("exporting the unfolded reference")
    reference = reference_of(opened)
    say("folding")
    folded = fold_reference(reference, opened, keep=keep, moves=moves)
    if folded.report.refused and not allow_refused:
        raise FoldError(_refusal(opened.name, folded.report))
    inputs, outputs = _specs(reference.graph.inputs), _specs(reference.graph.outputs)
    classes = read_labels(labels) if labels is not None else opened.labels
    pictures = read_preprocessing(preprocessing) if preprocessing is not None else opened.preprocessing
    samples = _samples(opened, data, inputs, pictures, classes)
    say("computing golden vectors and their float64 truth")
    from bnfold.folding.onnx_file import to_proto

    reference_proto, folded_proto = to_proto(reference), to_proto(folded.model)
    goldens = _goldens(opened, reference_proto, folded_proto, inputs, outputs, samples)
    kind = _output_kind(output_kind or opened.output_kind)
    if kind == "probabilities":
        _check_probabilities(goldens, outputs[0].name)
    draft = BundleDraft(
        source=dict(opened.origin),
        inputs=inputs,
        outputs=outputs,
        output_kind=kind,
        labels=classes,
        preprocessing=pictures,
        fold_map=folded.fold_map,
        source_tensors=folded.source_tensors,
        tool_versions=_versions(),
        model=folded_proto,
        reference=reference_proto,
        statistics=folded.statistics,
        fold_report=folded.report.to_dict(),
        goldens=goldens,
        parameters=folded.parameters,
    )
    say("proving and writing the bundle")
    return write_bundle(Path(destination), draft, prove=_prove, draw=_draw)


def read_preprocessing(preprocessing: Preprocessing | Path | str) -> Preprocessing:
    """Preprocessing as given, or out of a JSON file. Raises DataError or BundleError for what is none."""
    if isinstance(preprocessing, Preprocessing):
        return preprocessing
    try:
        document = parse_object(Path(preprocessing).read_bytes(), str(preprocessing))
    except OSError as problem:
        raise DataError(f"the preprocessing {preprocessing} cannot be read ({problem}); expected a JSON file") from None
    return Preprocessing.from_dict(document, str(preprocessing))


def _refusal(name: str, report: FoldReport) -> str:
    first, *others = report.refused
    more = f" (and {len(others)} more)" if others else ""
    return (
        f"{name}: norm '{first.name}' is refused{more}: {first.detail} [{first.reason}]; "
        "mend the network, or leave such norms alone with --allow-refused"
    )


def _specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    specs = []
    for value in values:
        if value.shape is None or value.dtype is None:
            raise FoldError(
                f"'{value.name}' of the graph has no shape or no dtype; expected both; export the network again"
            )
        if value.dtype.name == "STRING" or value.dtype.name.startswith("COMPLEX"):
            raise FoldError(
                f"'{value.name}' of the graph is of type {value.dtype.name}, expected numbers; leave it out"
            )
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        specs.append(TensorSpec(str(value.name), value.dtype.numpy().name, shape))
    return tuple(specs)


def _output_kind(kind: str | None) -> Any:
    if kind not in (None, "logits", "probabilities", "raw"):
        raise DataError(f"output kind '{kind}' is not known; expected logits, probabilities or raw")
    return kind or "raw"


def _check_probabilities(goldens: Sequence[Golden], name: str) -> None:
    low = min(float(golden.truth[name].min()) for golden in goldens)
    high = max(float(golden.truth[name].max()) for golden in goldens)
    if not -_SLACK <= low <= high <= 1 + _SLACK:
        raise DataError(
            f"output '{name}' has values from {low:.3g} to {high:.3g}, expected probabilities, from 0 to 1; "
            "say logits or raw as its output kind"
        )


def _samples(
    source: Source,
    data: Path | str | tuple[Any, Any] | None,
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None,
    labels: Sequence[str] | None,
) -> Samples | None:
    if data is None and source.held_out is not None:
        data = source.held_out()
    return None if data is None else load_samples(data, inputs, preprocessing=preprocessing, labels=labels)


def _goldens(
    source: Source,
    reference: onnx.ModelProto,
    folded: onnx.ModelProto,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    samples: Samples | None,
) -> tuple[Golden, ...]:
    from bnfold.runtime import open_session, run

    session = open_session(folded.SerializeToString(), optimise=False)
    made = []
    for at, batch in enumerate(golden_inputs(inputs, samples)):
        if source.module is not None:
            true = _truth_of_module(source, reference, inputs, outputs, batch)
        else:
            from bnfold.parity.oracle import run_float64

            true = run_float64(reference, dict(batch.inputs))
        answers = run(session, dict(batch.inputs))
        truth = {spec.name: np.asarray(true[spec.name], np.float64) for spec in outputs}
        made.append(Golden(f"test_data_set_{at}", dict(batch.inputs), answers, truth, batch.labels))
    return tuple(made)


def _truth_of_module(
    source: Source,
    reference: onnx.ModelProto,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    batch: Samples,
) -> Mapping[str, Array]:
    """The module's own float64 outputs, once the export is proven on this batch (tier T3b)."""
    from bnfold.export.proof import prove_export, run_module_float64

    prove_export(source.module, reference, dict(batch.inputs))
    found = run_module_float64(source.module, [batch.inputs[spec.name] for spec in inputs])
    if len(found) != len(outputs):
        raise ParityError(
            f"{source.name} gave {len(found)} outputs, its export {len(outputs)}; expected the same number"
        )
    return {spec.name: array for spec, array in zip(outputs, found, strict=True)}


def _versions() -> dict[str, str]:
    found = {}
    for name in _TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _prove(bundle: Bundle) -> dict[str, Any]:
    from bnfold.parity import prove

    return prove(bundle)


def _draw(bundle: Bundle, document: Mapping[str, Any]) -> str:
    from bnfold.pages.parity import parity_page

    return parity_page(document, fold_report=bundle.fold_report(), manifest=bundle.manifest.to_dict())
