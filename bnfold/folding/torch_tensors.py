"""The tensors that an exported program stores: their values, their storage, and which of them its graph writes to."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from bnfold.folding.expressions import Array

FLOATS = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def stored_tensor(program: ExportedProgram, target: str | None) -> Any:
    """A parameter, buffer or lifted constant by its qualified name; None for anything else."""
    if target is None:
        return None
    return program.state_dict.get(target, program.constants.get(target))


def to_numpy(tensor: torch.Tensor) -> Array:
    """The values of a tensor in its own dtype, bfloat16 as the ml_dtypes scalar type."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        import ml_dtypes

        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return plain.numpy()


def to_torch(array: Array, like: torch.Tensor) -> torch.Tensor:
    """A new tensor of these values on the device of another. array: float16 to float64, or ml_dtypes bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(like.device)
    return torch.from_numpy(array.copy()).to(like.device)


def is_plain(tensor: Any) -> bool:
    """True for a tensor with numbers of its own: no subclass (quantised, distributed, fake), not sparse, not meta."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta


def is_exact(before: torch.dtype | None, after: torch.dtype | None) -> bool:
    """True when every value of one float dtype is a value of the other."""
    if before not in FLOATS or after not in FLOATS:
        return False
    return torch.promote_types(before, after) == after


def fixed_size(size: int | torch.SymInt) -> int | None:
    """A size as a number, None where it is free. The tracer leaves a symbol where it has found its only value."""
    return int(size) if is_concrete_int(size) else None


def integers(value: Any, count: int) -> tuple[int, ...] | None:
    """A list of `count` numbers, or one number for all of them; None where they are not all fixed."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    given = given * count if len(given) == 1 else given
    known = tuple(item for item in given if isinstance(item, int) and not isinstance(item, bool))
    return known if len(known) == len(given) == count else None


def dimensions(value: torch.Tensor) -> tuple[int | str, ...]:
    """The shape of a fake tensor: numbers, and the expressions of the sizes that are free."""
    return tuple(str(size) if fixed_size(size) is None else int(size) for size in value.shape)


def is_inplace(node: Node) -> bool:
    """True for an operator that writes to an argument."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def key_of(tensor: torch.Tensor, name: str) -> Hashable:
    """The storage, and how it is laid out there: tied tensors have one key. Without elements, the name."""
    storage = storage_of(tensor, name)
    if isinstance(storage, str):
        return storage
    return (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), str(tensor.dtype))


def storage_of(tensor: torch.Tensor, name: str) -> Hashable:
    """The memory that holds a tensor; the name of the tensor where it has none."""
    try:
        return (str(tensor.device), tensor.untyped_storage().data_ptr()) if tensor.numel() else name
    except (RuntimeError, NotImplementedError):  # a tensor subclass without storage of its own
        return name


def written_nodes(program: ExportedProgram, stored: Mapping[Node, tuple[str, torch.Tensor]]) -> set[Node]:
    """The nodes whose memory the graph writes to, in place, through a view, or as statistics in training.

    stored: the placeholders of tensors that the program holds, with their names. A node is named for its memory: by
    the storage of a tensor, or by the node that made it; a view has the memory of what it may be a view of.
    """
    mutations = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
    given_back = {spec.target for spec in program.graph_signature.output_specs if spec.kind in mutations}
    memory: dict[Node, frozenset[Hashable]] = {}
    written: set[Hashable] = set()
    for node in program.graph.nodes:
        inputs = (memory[item] for item in node.all_input_nodes)
        is_view = node.op == "call_function" and _may_alias(node)
        memory[node] = frozenset().union(*inputs) if is_view else frozenset((node,))
        if node in stored:
            name, tensor = stored[node]
            memory[node] = frozenset((storage_of(tensor, name),))
            written |= memory[node] if name in given_back else frozenset()
        for item in _targets(node):
            written |= memory[item]
    return {node for node, held in memory.items() if held & written}


def _may_alias(node: Node) -> bool:
    """True unless the schema says that the output is memory of its own (dropout in eval mode says so and is not)."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    returned = node.target._schema.returns
    return "dropout" in str(node.target) or any(value.alias_info is not None for value in returned)


def _targets(node: Node) -> Iterator[Node]:
    """The arguments that an operator writes to."""
    if not isinstance(node.target, torch._ops.OpOverload) or str(node.target) == "aten.detach_.default":
        return
    for at, argument in enumerate(node.target._schema.arguments):
        value = node.args[at] if at < len(node.args) else node.kwargs.get(argument.name)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        # Batch norm in training writes its statistics, and the schema of aten.batch_norm does not say so.
        is_statistic = argument.name in ("running_mean", "running_var") and _trains(node)
        if (is_written or is_statistic) and isinstance(value, Node):
            yield value


def _trains(node: Node) -> bool:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    for name in ("training", "use_input_stats"):
        if name in names:
            at = names.index(name)
            return bool(node.args[at] if at < len(node.args) else node.kwargs.get(name, False))
    return False
