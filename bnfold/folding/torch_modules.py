"""An edited program as a module again: a deep copy of the source where its modules allow it, else a GraphModule."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from bnfold.errors import FoldError
from bnfold.folding.edits import Bypass, Edit, SetWeights
from bnfold.folding.expressions import Array
from bnfold.folding.torch_nodes import METADATA, arguments, operator_of
from bnfold.folding.torch_tensors import stored_tensor, to_torch
from bnfold.folding.torch_trace import copied, functional, quiet, trace_module

_log = logging.getLogger(__name__)

_LINEARS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


def graph_module(program: ExportedProgram) -> GraphModule:
    """A program as a plain GraphModule in eval mode, without guards on its inputs. It shares the program's tensors.

    What torch.export gives back itself has no train() or eval() and checks the batch size.
    """
    with quiet():
        exported = program.module(check_guards=False)
        plain = GraphModule(exported, exported.graph, class_name="Folded")
    return plain.eval()


def fold_copy(
    module: nn.Module,
    program: ExportedProgram,
    edited: ExportedProgram,
    edits: Sequence[Edit],
    example_inputs: tuple[Any, ...],
    *,
    dynamic_shapes: Any,
) -> nn.Module | None:
    """A deep copy of the module with the edits carried out on its submodules, in eval mode; None where that cannot be.

    program: the trace of the module; edited: the same with the edits carried out. The copy is traced again, and has
    to be that edited program, node by node and bit by bit.
    """
    copy = copied(module).eval()
    if not edits:
        return copy
    if not all(_fits_modules(edit) for edit in edits):
        _log.debug("%s is folded as a graph: the edits change more than numbers", type(module).__name__)
        return None
    try:
        _edit_modules(copy, program, edits)
        retraced = trace_module(copy, example_inputs, dynamic_shapes=dynamic_shapes)
        if retraced.dialect != program.dialect:  # the one with steps in place has been functionalised
            retraced = functional(retraced)
    except (_NotAModule, AttributeError, FoldError) as problem:
        _log.debug("%s is folded as a graph: %s", type(module).__name__, problem)
        return None
    if _description(retraced) != _description(edited) or not _same_tensors(retraced, edited):
        _log.debug("%s is folded as a graph: its copy does not trace to the folded graph", type(module).__name__)
        return None
    return copy


def _fits_modules(edit: Edit) -> bool:
    """True for an edit that leaves every operator and every shape of a weight as they are, norms aside."""
    match edit:
        case SetWeights(linear, weight, _, window, groups):
            same = (linear.weight.shape, linear.window, linear.groups)
            return (weight.shape, window, groups) == same and not edit.merged
        case Bypass():
            return True
    return False


class _NotAModule(Exception):
    """A site that is not a module of its own, called once."""


def _edit_modules(copy: nn.Module, program: ExportedProgram, edits: Sequence[Edit]) -> None:
    nodes = {node.name: node for node in program.graph.nodes}
    sites = _sites(program)
    gone = {nodes[name] for edit in edits if isinstance(edit, Bypass) for name in edit.norm.nodes}
    for edit in edits:
        match edit:
            case SetWeights():
                path = _path(nodes[edit.linear.id])
                linear = copy.get_submodule(path)
                if not isinstance(linear, _LINEARS) or edit.linear.weight.name != f"{path}.weight".lstrip("."):
                    raise _NotAModule(f"{edit.linear.label} is no linear module called once")
                _set(linear, "weight", edit.weight_values())
                _set(linear, "bias", edit.bias_values())
            case Bypass():
                _replace(copy, _norm_path(sites, [nodes[name] for name in edit.norm.nodes], gone))


def _set(linear: nn.Module, name: str, array: Array | None) -> None:
    if array is None:
        setattr(linear, name, None)
        return
    old = getattr(linear, name)
    like = linear.weight if old is None else old
    new = nn.Parameter(to_torch(array, like), requires_grad=like.requires_grad)  # type: ignore[arg-type]
    setattr(linear, name, new)


def _replace(copy: nn.Module, path: str) -> None:
    """torch.nn.Identity in place of a module, under every name that it has."""
    norm = copy.get_submodule(path)
    holders = [
        (owner, name) for owner in copy.modules() for name, child in owner._modules.items() if child is norm
    ]  # fmt: skip
    identity = nn.Identity().eval()
    for owner, name in holders:
        owner._modules[name] = identity


def _path(node: Node) -> str:
    """The qualified name of the module in whose forward a node was traced, '' for the outermost or none."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for entry in stack.values():
        path = entry[0] if isinstance(entry, tuple) else path
    return path


def _sites(program: ExportedProgram) -> dict[str, list[Node]]:
    """The nodes that compute something from the inputs, by every module in whose call they were traced."""
    inputs = set(program.graph_signature.user_inputs)
    data: set[Node] = set()
    sites: dict[str, list[Node]] = {}
    for node in program.graph.nodes:
        is_data = node.name in inputs or (node.op == "call_function" and any(i in data for i in node.all_input_nodes))
        if not is_data or operator_of(node) in METADATA:
            continue
        data.add(node)
        path = _path(node) if node.op == "call_function" else ""
        while path:
            sites.setdefault(path, []).append(node)
            path = path.rpartition(".")[0]
    return sites


def _norm_path(sites: Mapping[str, Sequence[Node]], nodes: Sequence[Node], gone: set[Node]) -> str:
    """The module whose calls are these nodes and others that go away too."""
    path = _path(nodes[0])
    while path:
        if set(nodes) <= set(sites[path]):
            if set(sites[path]) <= gone:
                return path
            break
        path = path.rpartition(".")[0]
    raise _NotAModule(f"the norm at node {nodes[0].name} is no module of its own")


def _description(program: ExportedProgram) -> list[Any]:
    """What a program computes, free of names: operators with arguments, placeholders by qualified name."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs if hasattr(spec.arg, "name")}
    needed = _needed(program)
    numbers: dict[Node, Any] = {}
    lines: list[Any] = []
    for node in program.graph.nodes:
        if node not in needed:
            continue
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind == InputKind.USER_INPUT:
                numbers[node] = ("input", sum(value[0] == "input" for value in numbers.values()))
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                numbers[node] = ("tensor", spec.target)
            else:
                numbers[node] = ("constant", sum(value[0] == "constant" for value in numbers.values()))
            continue
        given = arguments(node) if operator_of(node) else {"args": node.args, "kwargs": node.kwargs}
        numbers[node] = ("node", len(lines))
        lines.append((str(node.target), _plain(given, numbers)))
    return lines


def _plain(value: Any, numbers: dict[Node, Any]) -> Any:
    if isinstance(value, Node):
        return numbers[value]
    if isinstance(value, dict):
        return tuple((name, _plain(item, numbers)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_plain(item, numbers) for item in value)
    return (type(value).__name__, str(value))


def _needed(program: ExportedProgram) -> set[Node]:
    """The nodes that the outputs depend on, and those with an effect of their own."""
    needed: set[Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "placeholder":
            is_input = not any(user in needed for user in node.users)
            if is_input and node.name not in program.graph_signature.user_inputs:
                continue
            needed.add(node)
        elif operator_of(node) in METADATA and not node.users:
            continue
        elif node.is_impure() or node.op == "output" or any(user in needed for user in node.users):
            needed.add(node)
    return needed


def _same_tensors(one: ExportedProgram, other: ExportedProgram) -> bool:
    """True when the tensors that two programs use are equal, bit by bit, in order of use."""
    ours, theirs = _used(one), _used(other)
    return len(ours) == len(theirs) and all(_same(a, b) for a, b in zip(ours, theirs, strict=True))


def _used(program: ExportedProgram) -> list[torch.Tensor]:
    needed = {node.name for node in _needed(program)}
    specs = [spec for spec in program.graph_signature.input_specs if getattr(spec.arg, "name", "") in needed]
    named = sorted((spec for spec in specs if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)), key=_target)
    lifted = [spec for spec in specs if spec.kind == InputKind.CONSTANT_TENSOR]
    return [stored_tensor(program, spec.target) for spec in (*named, *lifted)]


def _target(spec: Any) -> str:
    return str(spec.target)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return False
    return bool(torch.equal(_bits(a), _bits(b)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
