"""Names that are the same each time a network is exported: inputs, outputs, nodes, statistics, the batch axis."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set

import onnx_ir as ir
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from bnfold.errors import ExportError

_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_OPERATOR = "BatchNormalization"


def output_names_of(program: ExportedProgram) -> list[str]:
    """A name for each tensor that the program gives: "output", or numbered, or the keys of a dict."""
    spec = program.call_spec.out_spec
    kinds = [item for item in program.graph_signature.output_specs if item.kind == OutputKind.USER_OUTPUT]
    paths: list[str] = []
    if spec is not None:
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        leaves, _ = pytree.tree_flatten_with_path(tree)
        paths = [".".join(key.key for key in path if isinstance(key, pytree.MappingKey)) for path, _ in leaves]
    if len(paths) != len(kinds) or len(set(paths)) != len(paths) or not all(re.fullmatch(r"[\w.]+", p) for p in paths):
        paths = ["output" if at == 0 else f"output_{at}" for at in range(len(kinds))]
    # An output that is no tensor (None, a number) is none in ONNX.
    return [path for path, item in zip(paths, kinds, strict=True) if isinstance(item.arg, TensorArgument)]


def apply_names(model: ir.Model, stored: Set[str], *, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    """Name inputs, outputs, nodes, symbolic sizes and the constants of norms. Raises ExportError for unusable names."""
    graph = model.graph
    _name_sizes(graph)
    _name_nodes(graph)
    _name_statistics(graph, stored)
    _check_names("input", input_names, len(graph.inputs))
    _check_names("output", output_names, len(graph.outputs))
    wanted = {*input_names, *output_names}
    if len(wanted) != len(input_names) + len(output_names):
        raise ExportError(
            f"inputs {list(input_names)} and outputs {list(output_names)} share a name; expected names of their own"
        )
    clash = next((name for name in graph.initializers if name in wanted), None)
    if clash is not None:
        raise ExportError(f"'{clash}' is the name of a parameter of the network; give another input or output name")
    _move_aside(graph, wanted)
    for value, name in zip((*graph.inputs, *graph.outputs), (*input_names, *output_names), strict=True):
        value.name = name


def _check_names(what: str, names: Sequence[str], count: int) -> None:
    if isinstance(names, str) or len(names) != count or len(set(names)) != count or not all(names):
        raise ExportError(f"{what} names {list(names)} do not fit; expected {count} different names, one a tensor")


def _move_aside(graph: ir.Graph, wanted: Set[str]) -> None:
    values = [value for node in graph.all_nodes() for value in node.outputs]
    taken = {str(value.name) for value in (*values, *graph.inputs, *graph.initializers.values())} | wanted
    for value in (*values, *graph.inputs):
        if value.name in wanted:
            number = 1
            while f"{value.name}_{number}" in taken:
                number += 1
            value.name = f"{value.name}_{number}"
            taken.add(str(value.name))


def _name_sizes(graph: ir.Graph) -> None:
    """The first free axis 0 of the inputs is "batch", further ones are "batch_2", ...; other sizes "size_1", ..."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            symbol = None if isinstance(size, int) else size.value
            if symbol is not None and symbol not in names and axis == 0:
                number = sum(name.startswith("batch") for name in names.values()) + 1
                names[symbol] = "batch" if number == 1 else f"batch_{number}"

    def renamed(match: re.Match[str]) -> str:
        symbol = match[0]
        if re.fullmatch(r"[su]\d+", symbol) and symbol not in names:
            names[symbol] = f"size_{sum(name.startswith('size') for name in names.values()) + 1}"
        return names.get(symbol, symbol)

    values = [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in dict.fromkeys((*values, *graph.outputs)):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else size.value for size in value.shape]
            value.shape = ir.Shape(_renamed_size(size, renamed) for size in sizes)


def _renamed_size(size: int | str | None, renamed: Callable[[re.Match[str]], str]) -> int | str | None:
    if not isinstance(size, str):
        return size
    # The exporter writes a size that it has found out as a symbol called "2".
    return int(size) if size.isdecimal() else _SYMBOL.sub(renamed, size)


def _name_nodes(graph: ir.Graph) -> None:
    """As the exporter names them, without its prefix; batch norm by its operator, with its output."""
    count = 0
    taken = {str(value.name) for node in graph.all_nodes() for value in node.outputs}
    for node in graph.all_nodes():
        node.name = str(node.name or node.outputs[0].name).removeprefix("node_")
        if node.op_type == _OPERATOR:
            node.name = "batch_norm" if count == 0 else f"batch_norm_{count}"
            count += 1
            if node.name not in taken:
                node.outputs[0].name = node.name


def _name_statistics(graph: ir.Graph, stored: Set[str]) -> None:
    """A norm without gamma and beta was given ones and zeros: name them as the parameters that they stand for."""
    for node in graph.all_nodes():
        if node.op_type != _OPERATOR or node.inputs[3] is None or node.inputs[3].name not in stored:
            continue
        owner = str(node.inputs[3].name).rpartition(".")[0]
        for at, last in ((1, "weight"), (2, "bias")):
            value = node.inputs[at]
            name = f"{owner}.{last}" if owner else last
            if value is None or not value.is_initializer() or value.name in stored or name in graph.initializers:
                continue
            own = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
            graph.register_initializer(own)
            node.replace_input_with(at, own)
            if not value.uses():
                graph.initializers.pop(str(value.name), None)
