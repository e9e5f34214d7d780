"""`bnfold.fold`: one call for every kind of source. The frameworks are imported when a source of theirs comes in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import FoldError
from bnfold.folding.report import FoldReport

_KINDS = (
    "a torch.nn.Module, a torch.export.ExportedProgram, an onnx.ModelProto, an onnx_ir.Model, a path to .onnx, "
    "or the bytes of one"
)


@dataclass(frozen=True)
class FoldResult:
    """A folded network, and what became of its norms.

    model: of the source's kind (a path gives an onnx.ModelProto); it shares no storage with the source.
    fold_map: for each folded tensor its name, its role, the source tensors and the norms it is made of.
    """

    model: Any
    report: FoldReport
    fold_map: tuple[dict[str, Any], ...]


def fold(
    source: Any,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    dynamic_shapes: Any = None,
    keep: Sequence[str] = (),
    moves: str | Sequence[str] = "default",
) -> FoldResult:
    """Fold every norm that can be folded exactly; the source is never changed.

    source: a torch.nn.Module (with `example_inputs`, a tuple), a torch.export.ExportedProgram, an onnx.ModelProto,
    an onnx_ir.Model, a path to .onnx, or the bytes of such a file. keep: names or patterns of norms to leave alone.
    moves: "default" (no move that costs more at run time than the norm it removes), "all", or names of moves.

    Refused norms are reported and left alone. Raises FoldError for a source that cannot be read or traced.
    """
    if isinstance(source, bytes):
        return _fold_bytes(source, keep, moves)
    kind = source_kind(source)
    if kind == "module":
        from bnfold.folding import torch_graph

        given: object = example_inputs
        if not isinstance(given, tuple):
            found = "nothing" if given is None else type(given).__name__
            raise FoldError(f"folding a torch.nn.Module needs example_inputs, a tuple of its arguments; found {found}")
        return FoldResult(
            *torch_graph.fold_module(source, given, dynamic_shapes=dynamic_shapes, keep=keep, moves=moves)
        )
    if kind == "program":
        from bnfold.folding import torch_graph

        return FoldResult(*torch_graph.fold_program(source, keep=keep, moves=moves))
    from bnfold.folding import onnx_file, onnx_graph

    if kind == "ir":
        folded, report, fold_map = onnx_graph.fold(source, keep=keep, moves=moves)
        return FoldResult(onnx_file.own_tensors(folded), report, fold_map)
    model = onnx_file.from_proto(source, hold=True) if kind == "proto" else onnx_file.load_model(source)
    folded, report, fold_map = onnx_graph.fold(model, keep=keep, moves=moves)
    return FoldResult(onnx_file.to_proto(folded, consume=True), report, fold_map)


def _fold_bytes(source: bytes, keep: Sequence[str], moves: str | Sequence[str]) -> FoldResult:
    from bnfold.folding import onnx_bytes, onnx_file, onnx_graph

    folded, report, fold_map = onnx_graph.fold(onnx_file.load_bytes(source), keep=keep, moves=moves)
    return FoldResult(onnx_bytes.to_bytes(folded), report, fold_map)


def source_kind(source: Any) -> str:
    """Tell "module", "program", "proto", "ir" and "path" apart, without importing a framework.

    Raises FoldError for anything else. An object of a framework can only exist once that framework is loaded.
    """
    if isinstance(source, str | Path):
        return "path"
    for module, name, kind in (
        ("torch.nn", "Module", "module"),
        ("torch.export", "ExportedProgram", "program"),
        ("onnx", "ModelProto", "proto"),
        ("onnx_ir", "Model", "ir"),
    ):
        cls = getattr(sys.modules.get(module), name, None)
        if cls is not None and isinstance(source, cls):
            return kind
    raise FoldError(f"cannot fold an object of type {type(source).__name__}; expected {_KINDS}")
