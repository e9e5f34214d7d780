"""A clone of an exported program that edits are carried out on: its graph, tensors, signature and fake values.

Tensors are replaced, never written to, so that what shares storage with them stays as it is.
"""

from __future__ import annotations

import copy
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputSpec, TensorArgument
from torch.fx import Graph, GraphModule, Node

from bnfold.errors import FoldError
from bnfold.folding.expressions import Array
from bnfold.folding.torch_tensors import dimensions, is_inplace, to_torch
from bnfold.folding.torch_trace import quiet

_log = logging.getLogger(__name__)
_FOREIGN = "plan and program must come from one another"


class Clone:
    """A program under edit. Nodes and values go by the names that they have in the source."""

    def __init__(self, source: ExportedProgram, *, own_storage: bool) -> None:
        self._source = source
        self.graph = Graph()
        copies: dict[Node, Node] = {}
        result = self.graph.graph_copy(source.graph, val_map=copies, return_output_node=True)
        if not isinstance(result, tuple):
            raise FoldError("the exported program has no output node; export the network again")
        self._output = self.graph.output(result[0])
        self._output.meta = copy.copy(result[1].meta)
        self._nodes = {old.name: new for old, new in copies.items()}
        self._values = dict(self._nodes)
        self._names: dict[Node, set[str]] = {node: {name} for name, node in self._nodes.items()}
        self._specs: list[tuple[InputSpec, Node | None]] = [
            (spec, self._nodes[spec.arg.name] if hasattr(spec.arg, "name") else None)
            for spec in source.graph_signature.input_specs
        ]
        self._targets = {node: str(spec.target) for spec, node in self._specs if node is not None}
        tensors = (dict(source.state_dict), dict(source.constants))
        own = _cloned(tensors) if own_storage else tensors
        self._state: dict[str, Any] = own[0]
        self._constants: dict[str, Any] = own[1]
        self._made: list[tuple[InputSpec, Node]] = []
        self._owners: dict[str, int] = {}  # how many tensors lie below a path
        for name in (*self._state, *self._constants):
            self._enter(name)

    # Nodes and values

    def operation(self, name: str) -> Node:
        """The node that does what a node of the source did."""
        if name not in self._nodes:
            raise FoldError(f"the program has no node '{name}'; {_FOREIGN}")
        return self._nodes[name]

    def value(self, name: str) -> Node:
        """The node that holds the data of a value of the source now."""
        if name not in self._values:
            raise FoldError(f"the program has no value '{name}'; {_FOREIGN}")
        return self._values[name]

    def substitute(self, old: Node, new: Node, *, but: Callable[[Node], bool] | None = None) -> None:
        """Let whoever reads one node read another; `but`: readers that go on as they are."""
        old.replace_all_uses_with(
            new, delete_user_cb=(lambda _: True) if but is None else (lambda user: not but(user)), propagate_meta=False
        )
        names = self._names.pop(old, set())
        self._names.setdefault(new, set()).update(names)
        self._values.update(dict.fromkeys(names, new))

    def call_after(self, node: Node, target: Any, *args: Any) -> Node:
        """A new operation right behind a node, or behind all inputs; its fake value is computed."""
        after = node
        while after.op == "placeholder" and after.next.op == "placeholder":
            after = after.next
        with self.graph.inserting_after(after):
            made = self.graph.call_function(target, args)
        return self._described(made, like=node)

    def call_before(self, node: Node, target: Any, *args: Any) -> Node:
        """A new operation right before a node."""
        with self.graph.inserting_before(node):
            made = self.graph.call_function(target, args)
        return self._described(made, like=node)

    def _described(self, made: Node, *, like: Node) -> Node:
        made.meta = {key: value for key, value in like.meta.items() if key in ("nn_module_stack", "stack_trace")}
        _recompute(made)
        return made

    # Tensors

    def target(self, node: Any) -> str:
        """The qualified name of the tensor that a placeholder stands for, '' for anything else."""
        return self._targets.get(node, "") if isinstance(node, Node) and node.op == "placeholder" else ""

    def tensor(self, target: str) -> torch.Tensor:
        """A tensor by its qualified name."""
        return (self._state if target in self._state else self._constants)[target]  # type: ignore[no-any-return]

    def known(self, target: str) -> torch.Tensor | None:
        """The same, as the source has it; None for a tensor that it does not have."""
        found = self._source.state_dict.get(target, self._source.constants.get(target))
        return found if isinstance(found, torch.Tensor) else None

    def store(self, node: Node, array: Array) -> None:
        """Another tensor under the name that a placeholder stands for."""
        target = self._targets[node]
        home = self._state if target in self._state else self._constants
        old = home[target]
        home[target] = _like(old, array)
        if list(old.shape) != list(array.shape):
            node.meta["val"] = node.meta["val"].fake_mode.from_tensor(home[target], static_shapes=True)

    def parameter(self, name: str, array: Array, *, like: torch.Tensor, trains: bool) -> Node:
        """A new parameter on the device of a tensor; `name` is the qualified name, if that is free."""
        target = self._free(name)
        parameter = torch.nn.Parameter(to_torch(array, like), requires_grad=trains)
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(self._made[0][1] if self._made else first):
            node = self.graph.placeholder(re.sub(r"\W", "_", f"p_{target}"))
        node.target = node.name
        node.meta["val"] = self._fake_mode().from_tensor(parameter, static_shapes=True)
        self._made.insert(0, (InputSpec(InputKind.PARAMETER, TensorArgument(node.name), target), node))
        self._targets[node] = target
        self._state[target] = parameter
        self._enter(target)
        return node

    def _fake_mode(self) -> Any:
        values = (node.meta.get("val") for node in self.graph.nodes)
        mode = next((value.fake_mode for value in values if hasattr(value, "fake_mode")), None)
        if mode is None:
            raise FoldError("the exported program says nothing of its tensors' shapes; export the network again")
        return mode

    def _enter(self, name: str) -> None:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            path = ".".join(parts[:count])
            self._owners[path] = self._owners.get(path, 0) + 1

    def _free(self, name: str) -> str:
        """The name, or the name with a number, where no tensor has it, lies below it, or is its owner."""
        name = re.sub(r"[^\w.-]+", "_", name).strip(".") or "folded"
        if any(self._is_tensor(owner) for owner in _above(name)):
            name = name.replace(".", "_")
        candidate, number = name, 1
        while candidate in self._owners:
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _is_tensor(self, name: str) -> bool:
        return name in self._state or name in self._constants

    # The end

    def sweep(self, dead: Iterable[Node]) -> None:
        """Remove nodes that nobody reads, then what only they used, parameters included."""
        queue = deque(dead)
        unused: set[Node] = set()
        erased: set[Node] = set()
        while queue:
            node = queue.popleft()
            if node in erased or node.users:
                continue
            if node.op == "placeholder":
                unused.add(node)
            elif node.op == "call_function" and not is_inplace(node):
                inputs = node.all_input_nodes
                self.graph.erase_node(node)
                erased.add(node)
                queue.extend(inputs)
        owners = {self._targets.get(node, "").rpartition(".")[0] for node in unused}
        left: list[tuple[InputSpec, Node | None]] = []
        for spec, holder in (*self._made, *self._specs):
            # What else the owner of a folded norm keeps (the count of batches) goes with it.
            owner = str(spec.target).rpartition(".")[0]
            is_left_behind = holder in unused or (owner and owner in owners and spec.kind == InputKind.BUFFER)
            if holder is None or holder.users or spec.kind == InputKind.USER_INPUT or not is_left_behind:
                left.append((spec, holder))
                continue
            self._state.pop(str(spec.target), None)
            self._constants.pop(str(spec.target), None)
            self.graph.erase_node(holder)
        self._made, self._specs = [], left

    def program(self) -> ExportedProgram:
        """The edited program."""
        inputs = [
            InputSpec(spec.kind, _renamed(spec.arg, node), spec.target, spec.persistent)
            for spec, node in (*self._made, *self._specs)
        ]
        results: list[Any] = []
        torch.utils._pytree.tree_map(results.append, list(self._output.args[0]))
        outputs = [
            OutputSpec(spec.kind, _renamed(spec.arg, node if isinstance(node, Node) else None), spec.target)
            for spec, node in zip(self._source.graph_signature.output_specs, results, strict=True)
        ]
        with quiet():
            return ExportedProgram(
                root=GraphModule(copy.deepcopy(self._source.graph_module), self.graph),
                graph=self.graph,
                graph_signature=ExportGraphSignature(inputs, outputs),
                state_dict=self._state,
                range_constraints=copy.deepcopy(self._source.range_constraints),
                module_call_graph=copy.deepcopy(self._source.module_call_graph),
                example_inputs=copy.deepcopy(self._source.example_inputs),
                constants=self._constants,
                verifiers=self._source.verifiers,
            )


def refresh(graph: Graph, nodes: Iterable[Node]) -> None:
    """Compute the fake values of nodes anew, and of those behind them as far as that changes anything.

    A `view` that the new strides do not allow becomes a `reshape`.
    """
    pending = set(nodes)
    if not pending:
        return
    for node in graph.nodes:
        if node not in pending:
            continue
        pending.discard(node)
        if node.op != "call_function" or not _recompute(node):
            continue
        pending.update(node.users)
        if not pending:
            return


def _recompute(node: Node) -> bool:
    """Compute a node's fake value; true when it is another one than before."""
    old = node.meta.get("val")
    try:
        new = _run(node)
    except Exception as problem:  # whatever an operator says of fake tensors; the graph itself is not run here
        if str(node.target) == "aten.view.default":
            node.target = torch.ops.aten.reshape.default
            return _recompute(node)
        _log.debug("the shape behind %s is not known: %s", node.name, problem)
        return False
    node.meta["val"] = new
    node.meta.pop("tensor_meta", None)
    return bool(_layout(old) != _layout(new))


def _run(node: Node) -> Any:
    def value(item: Node) -> Any:
        return item.meta["val"]

    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
    tensors = [item for item in torch.utils._pytree.tree_leaves((args, kwargs)) if hasattr(item, "fake_mode")]
    if not tensors:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    with tensors[0].fake_mode, enable_python_dispatcher(), torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _layout(value: Any) -> Any:
    """What later nodes may depend on: sizes, strides and dtypes, as text, so that nothing is asked of symbols."""
    found = []
    for item in torch.utils._pytree.tree_leaves(value):
        is_tensor = isinstance(item, torch.Tensor)
        found.append((dimensions(item), str(item.stride()), item.dtype) if is_tensor else str(item))
    return found


def _above(name: str) -> list[str]:
    """The paths of the modules that would own a tensor of this name."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _cloned(tables: tuple[dict[str, Any], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables with every tensor cloned; what was one tensor under two names is one again."""
    clones: dict[int, torch.Tensor] = {}
    for value in [value for table in tables for value in table.values() if isinstance(value, torch.Tensor)]:
        if id(value) not in clones:
            clone = value.detach().clone()
            is_parameter = isinstance(value, torch.nn.Parameter)
            clones[id(value)] = torch.nn.Parameter(clone, value.requires_grad) if is_parameter else clone
    state, constants = ({name: clones.get(id(value), value) for name, value in table.items()} for table in tables)
    return state, constants


def _like(old: torch.Tensor, array: Array) -> torch.Tensor:
    new = to_torch(array, old)
    is_parameter = isinstance(old, torch.nn.Parameter)
    return torch.nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new


def _renamed(argument: Any, node: Node | None) -> Any:
    """The argument of a signature under the name that its node has now."""
    if node is None or not hasattr(argument, "name"):
        return argument
    renamed = copy.copy(argument)
    renamed.name = node.name
    return renamed
