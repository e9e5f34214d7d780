"""A torch module as a clean, unfolded ONNX model: traced, translated, cleaned, checked, and only then written.

Batch norm stays a BatchNormalization node, a norm written by hand keeps its Sub, Sqrt, Div, Mul and Add, and every
parameter stays bit for bit under its qualified name, so that the file can be the reference of a fold.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold import runtime
from bnfold.errors import BnfoldError, ExportError, FoldError, said
from bnfold.export.cleaning import clean
from bnfold.export.naming import apply_names, output_names_of
from bnfold.folding.expressions import Array
from bnfold.folding.torch_nodes import arguments, operator_of
from bnfold.folding.torch_tensors import to_numpy
from bnfold.folding.torch_trace import free_inputs, quiet, trace_module

OPSET = 20  # what the exporter of torch 2.13 writes by itself; ONNX Runtime 1.31 reads up to 26
_LARGEST = 2**31 - 2**20  # bytes; one protobuf message holds at most 2 GiB


def export_onnx(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...],
    path: Path | str,
    *,
    dynamic_batch: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """Write a module as one .onnx file, unfolded, in eval mode. The module is not changed.

    Arguments as in `export_model`. The file appears whole or not at all, and replaces one of that name. Raises
    ExportError.
    """
    model = export_model(
        module, example_inputs, dynamic_batch=dynamic_batch, input_names=input_names, output_names=output_names
    )
    _write(model.SerializeToString(), Path(path))


def export_model(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    dynamic_batch: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """A module as an ONNX model, unfolded, in eval mode. The module is not changed.

    example_inputs: the positional arguments; their sizes are fixed, but for axis 0, called "batch", unless
    `dynamic_batch` is false. input_names, output_names: one for each tensor; by default the names of the arguments,
    and "output", "output_1", ... or the keys of a dict.

    Raises ExportError when the module cannot be traced or translated, or fixes its batch size, or when ONNX Runtime
    cannot run the outcome.
    """
    model = translate(
        module, example_inputs, dynamic_batch=dynamic_batch, input_names=input_names, output_names=output_names
    )
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if size > _LARGEST:
        raise ExportError(
            f"{type(module).__name__} takes {size} bytes as ONNX, expected less than 2 GiB, the limit of a single file"
        )
    proto = ir.serde.serialize_model(model)
    _check(proto, example_inputs, type(module).__name__, dynamic_batch=dynamic_batch)
    return proto


def translate(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    dynamic_batch: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> ir.Model:
    """As `export_model`, without the check that the runtime can run it (it has no kernels for bfloat16)."""
    label = type(module).__name__
    if not example_inputs:
        raise ExportError(f"{label} needs example_inputs, a non-empty tuple of its arguments; found {example_inputs!r}")
    try:
        program = trace_module(module, example_inputs, free_batch=dynamic_batch)
    except FoldError as problem:
        raise ExportError(str(problem)) from problem
    if dynamic_batch and not free_inputs(program):
        raise ExportError(
            f"{label} fixes the size of axis 0 of its inputs, expected a batch of any size; "
            "mend what fixes it (a view with a literal batch size, say), or export with dynamic_batch=False"
        )
    _as_batch_norm(program)
    outputs = output_names if output_names is not None else output_names_of(program)
    stored = {*program.state_dict, *program.constants}
    model = _translated(program, label)
    inputs = input_names if input_names is not None else [str(value.name) for value in model.graph.inputs]
    try:
        clean(model, stored)
        apply_names(model, stored, input_names=inputs, output_names=outputs)
    except (RuntimeError, ValueError, TypeError) as problem:
        raise ExportError(f"the ONNX graph of {label} cannot be cleaned: {said(problem)}") from problem
    return model


def _as_batch_norm(program: ExportedProgram) -> None:
    """Instance norm that uses its running statistics is batch norm, and ONNX has no other operator for it."""
    for node in program.graph.nodes:
        if operator_of(node) == "instance_norm":
            given = arguments(node)
            if given["running_mean"] is not None and not given["use_input_stats"]:
                node.target = torch.ops.aten.batch_norm.default


def _translated(program: ExportedProgram, label: str) -> ir.Model:
    """The model of torch's exporter, without any of its optimisations: they fold batch norm."""
    noise = io.StringIO()
    try:
        with quiet(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            translated = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, opset_version=OPSET)
    except Exception as problem:  # the exporter raises its own types around whatever went wrong inside
        cause: BaseException = problem
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(
            f"{label} cannot be translated to ONNX: {said(cause)}; expected operators that torch.onnx knows, "
            "so replace the one that it names, or give an .onnx file made by another exporter"
        ) from problem
    if translated is None:
        raise ExportError(f"{label} cannot be translated to ONNX: torch.onnx.export gave nothing")
    return translated.model


def _check(proto: onnx.ModelProto, example_inputs: tuple[Any, ...], label: str, *, dynamic_batch: bool) -> None:
    """The ONNX checker, and runs by ONNX Runtime without optimisations: on the example, and on twice its rows."""
    given = [leaf for leaf in pytree.tree_leaves(example_inputs) if isinstance(leaf, torch.Tensor)]
    try:
        onnx.checker.check_model(proto, full_check=True)
        session = runtime.open_session(proto.SerializeToString(), optimise=False)
        feeds = {value.name: to_numpy(leaf) for value, leaf in zip(proto.graph.input, given, strict=True)}
        runtime.run(session, feeds)
        if dynamic_batch:
            runtime.run(session, {value.name: _twice(value, feeds[value.name]) for value in proto.graph.input})
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, BnfoldError, ValueError) as problem:
        reason = str(problem) if isinstance(problem, BnfoldError) else said(problem)
        raise ExportError(
            f"the ONNX graph of {label} does not run: {reason}; expected operators and dtypes that ONNX Runtime has on "
            "the CPU (float32, for one, so try module.float())"
        ) from problem


def _twice(value: onnx.ValueInfoProto, array: Array) -> Array:
    """The rows of an input twice over, where their number is free."""
    sizes = value.type.tensor_type.shape.dim
    is_free = bool(sizes) and sizes[0].dim_param.startswith("batch")
    return np.concatenate([array, array]) if is_free else array


def _write(data: bytes, path: Path) -> None:
    """Write a file whole or not at all."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as problem:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ExportError(f"{path} cannot be written: {problem.strerror}; expected a folder to write in") from problem
