"""The unfolded network of a source as a clean ONNX graph, its fold, and what would fold without folding it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.bundle import Parameter, SourceParameter, hash_tensor, trace_parameters
from bnfold.errors import FoldError
from bnfold.folding.report import FoldReport
from bnfold.samples import Array
from bnfold.sources import Source, open_source

if TYPE_CHECKING:
    import onnx_ir as ir

    from bnfold.folding.facts import Graph
    from bnfold.folding.plan import Plan


@dataclass(frozen=True, eq=False)
class Folded:
    """A folded reference, and all that a bundle says of the fold.

    source_tensors: name of a tensor of the reference -> its `hash_tensor`. statistics: per norm, by quantity.
    """

    model: ir.Model
    report: FoldReport
    fold_map: tuple[dict[str, Any], ...]
    statistics: Mapping[str, Mapping[str, Array]]
    source_tensors: Mapping[str, str]
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, eq=False)
class Inspection:
    """What would fold: the plan, the graph that it is about, and the graph as it would be, where that was asked for."""

    plan: Plan
    report: FoldReport
    before: Graph
    after: Graph | None = None


def inspect(
    source: Any,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
    network: str | None = None,
    keep: Sequence[str] = (),
    moves: str | Sequence[str] = "default",
    bound: float | None = None,
    fold: bool = False,
) -> Inspection:
    """What would fold, what would not, and why; writes nothing. Arguments as in `bnfold.build.build_bundle`.

    bound: also how far rounding moves the outputs of each linear for inputs up to this size. fold: also the graph
    after the fold.
    """
    opened = open_source(
        source, example_inputs=example_inputs, weights=weights, input_shape=input_shape, network=network
    )
    from bnfold.folding.numbers import error_bounds
    from bnfold.folding.plan import make_plan

    before, carried_out = _doors(opened)
    plan = make_plan(before, keep=keep, moves=moves)
    report = plan.report
    if bound is not None:
        report = dataclasses.replace(report, bounds=error_bounds(plan.edits, bound))
    return Inspection(plan, report, before, carried_out(plan) if fold else None)


def _doors(opened: Source) -> tuple[Graph, Callable[[Plan], Graph]]:
    """The facts of a source, and what gives the facts of its fold."""
    if opened.model is not None:
        from bnfold.folding import onnx_graph

        model = opened.model
        return onnx_graph.read(model), lambda plan: onnx_graph.read(onnx_graph.carry_out(model, plan.edits)[0])
    from bnfold.folding import torch_edits, torch_graph, torch_trace

    program = torch_trace.trace_module(opened.module, opened.example_inputs)
    return (
        torch_graph.read_program(program),
        lambda plan: torch_graph.read_program(torch_edits.carry_out(program, plan.edits)[0]),
    )


def reference_of(source: Source) -> ir.Model:
    """The unfolded network as a clean ONNX graph with all of its tensors in memory."""
    from bnfold.folding import onnx_file

    if source.model is not None:
        return _cleaned(source.model)
    from bnfold.export import export_model

    proto = export_model(
        source.module, source.example_inputs, input_names=source.input_names, output_names=source.output_names
    )
    return onnx_file.from_proto(proto, "the exported network")


def _cleaned(model: ir.Model) -> ir.Model:
    """A clone without documentation and metadata, which carry paths of the machine that exported it.

    Raises FoldError for a constant that a caller may override: a bundle would have to take it as an input.
    """
    import onnx_ir.passes.common as common_passes

    from bnfold.folding.onnx_edits import clone_of, unlist_constants

    clone = clone_of(model)
    unlist_constants(clone)
    for value in clone.graph.inputs:
        if value.name in clone.graph.initializers:
            raise FoldError(
                f"'{value.name}' is both an input and a constant of the graph, so a caller may override it; "
                "expected one of the two; take it off the inputs"
            )
    common_passes.ClearMetadataAndDocStringPass()(clone)
    clone.metadata_props.clear()
    return clone


def fold_reference(
    reference: ir.Model, source: Source, *, keep: Sequence[str] = (), moves: str | Sequence[str] = "default"
) -> Folded:
    """Fold a reference; the report has error bounds for inputs up to 1, the map every parameter of the source."""
    from bnfold.folding import onnx_graph
    from bnfold.folding.numbers import error_bounds
    from bnfold.folding.plan import make_plan
    from bnfold.folding.statistics import tensors_of

    made = make_plan(onnx_graph.read(reference), keep=keep, moves=moves)
    folded, fold_map = onnx_graph.carry_out(reference, made.edits)
    source_tensors = _hashes(reference)
    known = {**_constants(reference, {name for entry in fold_map for name in entry["from"]}), **source_tensors}
    parameters = source.parameters() if source.parameters else tuple(SourceParameter(*item) for item in known.items())
    return Folded(
        model=folded,
        report=dataclasses.replace(made.report, bounds=error_bounds(made.edits)),
        fold_map=fold_map,
        statistics={norm.name: tensors_of(norm) for norm in made.norms if not (norm.obstacle or norm.refusal)},
        source_tensors=source_tensors,
        parameters=trace_parameters(
            parameters, known, {**_constants(folded, known.keys()), **_hashes(folded)}, fold_map
        ),
    )


def _hashes(reference: ir.Model) -> dict[str, str]:
    return {
        name: hash_tensor(np.asarray(value.const_value.numpy()))
        for name, value in reference.graph.initializers.items()
        if value.const_value is not None
    }


def _constants(model: ir.Model, names: Set[str]) -> dict[str, str]:
    """The hashes of those tensors that Constant nodes hold under one of these names."""
    found = {}
    for node in model.graph:
        value = node.outputs[0] if node.op_type == "Constant" and node.outputs else None
        tensor = node.attributes.get("value")
        if value is not None and value.name in names and tensor is not None:
            found[str(value.name)] = hash_tensor(np.asarray(tensor.as_tensor().numpy()))
    return found
