"""What may be audited, and against what: opened, and checked to have the same inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bnfold.api import source_kind
from bnfold.bundle.manifest import TensorSpec
from bnfold.errors import FoldError, ParityError
from bnfold.folding import onnx_file
from bnfold.folding.onnx_clone import clone_of, unlist_constants
from bnfold.parity.audit.matching import Ends
from bnfold.sources import Source, open_source

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Opened:
    """A network as ONNX IR, with a name for it. source: what it came from, for held-out samples and preprocessing."""

    name: str
    model: ir.Model
    source: Source | None = None


def open_original(
    against: Any,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    weights: Path | str | None = None,
    shape: Sequence[int] | None = None,
    network: str | None = None,
) -> Opened:
    """The unfolded network. Raises FoldError, DataError or ExportError for what cannot be opened."""
    if isinstance(against, bytes):
        return Opened("the bytes of ORIGINAL", _plain(onnx_file.load_bytes(against, "ORIGINAL")))
    source = open_source(against, example_inputs=example_inputs, weights=weights, input_shape=shape, network=network)
    if source.model is not None:
        return Opened(source.name, _plain(source.model), source)
    from bnfold.reference import reference_of

    return Opened(source.name, _plain(reference_of(source)), source)


def open_folded(folded: Any, original: Opened, example_inputs: tuple[Any, ...] | None) -> Opened:
    """The folded network; a torch module is exported as it is. Raises FoldError or ExportError."""
    if isinstance(folded, bytes):
        return Opened("the bytes of FOLDED", _plain(onnx_file.load_bytes(folded, "FOLDED")))
    match source_kind(folded):
        case "path":
            return Opened(Path(folded).stem, _plain(onnx_file.load_model(folded)))
        case "proto":
            return Opened(str(folded.graph.name or "model"), _plain(onnx_file.from_proto(folded, "FOLDED")))
        case "ir":
            return Opened(str(folded.graph.name or "model"), _plain(folded))
        case "module":
            return _exported(folded, original, example_inputs)
    raise FoldError("FOLDED is an ExportedProgram; expected an .onnx file or a torch.nn.Module")


def _exported(module: torch.nn.Module, original: Opened, example_inputs: tuple[Any, ...] | None) -> Opened:
    from bnfold.export import export_model

    if example_inputs is None:
        made = original.source.example_inputs if original.source is not None else ()
        example_inputs = made or _examples(original)
    specs = specs_of(original.model.graph.inputs)
    is_free = all(spec.shape[:1] == (-1,) for spec in specs)
    proto = export_model(module, example_inputs, dynamic_batch=is_free)
    return Opened(type(module).__name__, _plain(onnx_file.from_proto(proto, "FOLDED")))


def _examples(original: Opened) -> tuple[Any, ...]:
    """Zeros of the shapes of the original's inputs, two rows where the batch is free."""
    import torch

    specs = specs_of(original.model.graph.inputs)
    for spec in specs:
        if -1 in spec.shape[1:]:
            raise ParityError(f"input '{spec.name}' is {list(spec.shape)}: give example_inputs to export FOLDED with")
    shapes = [tuple(2 if size < 0 else size for size in spec.shape) for spec in specs]
    return tuple(torch.from_numpy(np.zeros(shape, spec.dtype)) for shape, spec in zip(shapes, specs, strict=True))


def _plain(model: ir.Model) -> ir.Model:
    """A clone whose constants are no graph inputs, as they had to be up to IR version 3."""
    clone = clone_of(model)
    unlist_constants(clone)
    return clone


def specs_of(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Names, dtypes and shapes, -1 for a free size. Raises ParityError for a value without them."""
    specs = []
    for value in values:
        if value.dtype is None or value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
            raise ParityError(f"'{value.name}' of the graph is no tensor of numbers; expected one")
        shape = () if value.shape is None else tuple(s if isinstance(s, int) else -1 for s in value.shape)
        specs.append(TensorSpec(str(value.name), value.dtype.numpy().name, shape))
    return tuple(specs)


def inputs_of(model: ir.Model) -> list[ir.Value]:
    """The inputs that a caller must give: constants that may be overridden are none."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def ends_of(original: Opened, folded: Opened) -> Ends:
    """Which input and output is which. Raises ParityError where the two do not have the same."""
    inputs = paired(specs_of(inputs_of(original.model)), specs_of(inputs_of(folded.model)), "input")
    outputs = paired(specs_of(original.model.graph.outputs), specs_of(folded.model.graph.outputs), "output")
    return Ends(inputs, outputs)


def paired(original: Sequence[TensorSpec], folded: Sequence[TensorSpec], what: str) -> dict[str, str]:
    """Names of the folded network by names of the original one: the same names, or the same places.

    Raises ParityError where number, dtypes or shapes are not the same.
    """
    if len(original) != len(folded):
        raise ParityError(
            f"FOLDED has {len(folded)} {what}s ({_spelt(folded)}), ORIGINAL {len(original)} ({_spelt(original)}); "
            "expected the same: they are not one network"
        )
    by_name = {spec.name: spec for spec in folded}
    names = {spec.name for spec in original}
    if names == by_name.keys():
        folded = [by_name[spec.name] for spec in original]
    elif len(names) < len(original):  # two of FOLDED would stand for one, and only one of them be looked at
        raise ParityError(
            f"ORIGINAL has an {what} more than once ({_spelt(original)}), and FOLDED other names ({_spelt(folded)}); "
            "expected the same names, or each once"
        )
    for want, have in zip(original, folded, strict=True):
        if want.dtype != have.dtype or not _fits(want.shape, have.shape):
            raise ParityError(
                f"the {what} {_spelt([have])} of FOLDED stands where ORIGINAL has {_spelt([want])}; "
                "expected the same dtype and shape: they are not one network"
            )
    return {want.name: have.name for want, have in zip(original, folded, strict=True)}


def _fits(want: Sequence[int], have: Sequence[int]) -> bool:
    """True where no known size contradicts another."""
    if not want or not have:
        return True
    return len(want) == len(have) and all(a == b or -1 in (a, b) for a, b in zip(want, have, strict=True))


def _spelt(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{s.name}' {s.dtype} {list(s.shape)}".replace("-1", "?") for s in specs) or "none"
