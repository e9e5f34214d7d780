"""A torch module traced by torch.export, in eval mode, with a free batch size, on a deep copy."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import sysconfig
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from bnfold.errors import FoldError, said
from bnfold.folding.torch_tensors import fixed_size, is_inplace

_log = logging.getLogger(__name__)
_BY_EXAMPLE = {"aten.view_as.default", "aten.reshape_as.default", "aten.expand_as.default"}
_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + "/"
_LOGGERS = ("torch.export", "torch._export", "torch.fx", "torch._dynamo", "torch.onnx", "onnxscript", "onnx_ir")


def trace_module(
    module: torch.nn.Module, example_inputs: tuple[Any, ...], *, dynamic_shapes: Any = None, free_batch: bool = True
) -> ExportedProgram:
    """Trace a deep copy of a module in eval mode; the module itself is not touched.

    example_inputs: the positional arguments. dynamic_shapes: as for torch.export.export; None frees axis 0 of every
    tensor argument that the network lets go (also when the example has a batch of one), unless `free_batch` is false.

    Raises FoldError when the module cannot be copied or traced, or computes something else for a batch of one than
    for other batches: the tracer takes it that a free size is 2 or more, and does not see what is done for 1.
    """
    tensors = (*module.named_parameters(), *module.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None:
        raise FoldError(
            f"'{empty}' of {type(module).__name__} has no values (it is on the meta device); load the weights first"
        )
    _check_arguments(module, example_inputs)
    inert = copied(module).eval()
    inputs = pytree.tree_map(_detached, example_inputs)
    first: Exception | None = None
    for arguments, shapes in _attempts(inert, inputs, dynamic_shapes, free_batch):
        try:
            program = _export(inert, arguments, shapes)
        except Exception as problem:  # whatever the network's own code or the tracer raises
            first = first or problem
            _log.debug("tracing %s failed: %s", type(module).__name__, problem)
            continue
        if arguments is inputs or _is_free(program, inputs):
            if dynamic_shapes is None and free_batch and free_inputs(program):
                _check_one_row(module, program, inputs)
            return program
        _log.debug("%s fixes its batch size; it is traced with the example as given", type(module).__name__)
    raise FoldError(
        f"{type(module).__name__} cannot be traced by torch.export{_place(first)}: {_said(first)}; {_remedy(first)}"
    ) from first


def plainly_written(program: ExportedProgram) -> ExportedProgram:
    """The program with nothing written in place and every size as a number, where that can be had.

    A norm written in place (`x -= mean`), ReLU(inplace=True) and the like are facts only after functionalisation; it
    also puts sizes in place of the tensor that `reshape_as` reads for its shape. A program without such is given back.
    """
    if not any(is_inplace(node) or str(node.target) in _BY_EXAMPLE for node in program.graph.nodes):
        return program
    try:
        return functional(program)
    except Exception as problem:  # whatever the tracer raises; what is written in place is opaque then
        _log.debug("writes in place stay as they are: %s", problem)
        return program


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without operators that write in place."""
    with quiet(), torch.no_grad():
        made: ExportedProgram = program.run_decompositions({})
    return made


def free_inputs(program: ExportedProgram) -> tuple[str, ...]:
    """The names of the tensor arguments whose axis 0 is free."""
    return tuple(node.name for node in _arguments(program) if _has_free_axis(node.meta.get("val")))


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """A deep copy. Raises FoldError when the module cannot be copied."""
    # Tensors with a history (the weight that torch.nn.utils.weight_norm computes, a cache) cannot be copied with it.
    held = [value for inner in module.modules() for value in pytree.tree_leaves(list(vars(inner).values()))]
    computed = [value for value in held if isinstance(value, torch.Tensor) and not value.is_leaf]
    try:
        with quiet():
            return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in computed})
    except Exception as problem:  # a module may hold anything: open files, locks, tensors with a history
        raise FoldError(
            f"{type(module).__name__} cannot be copied ({said(problem)}), and folding never changes its source; "
            "expected a module that copy.deepcopy takes"
        ) from problem


def _check_arguments(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise FoldError when the module does not take as many arguments."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # none that can be told: the trace will say so
        return
    try:
        signature.bind(*inputs)
    except TypeError as problem:
        raise FoldError(
            f"{type(module).__name__}.forward{signature} does not take the {len(inputs)} example inputs ({problem}); "
            "give one for each positional argument, in order, and a default to whatever goes by keyword alone"
        ) from None


def _export(module: torch.nn.Module, inputs: tuple[Any, ...], dynamic_shapes: Any) -> ExportedProgram:
    # The tracer prints the graph that it has when it fails; the error says where it failed.
    with quiet(), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)
        return plainly_written(program)


def _attempts(
    module: torch.nn.Module, inputs: tuple[Any, ...], dynamic_shapes: Any, free_batch: bool
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Arguments and dynamic shapes to trace with, the most general first."""
    if dynamic_shapes is not None or not free_batch:
        yield inputs, dynamic_shapes
        return
    # torch.export takes a size of one for a constant, so a batch of one is traced as a batch of two.
    doubled = pytree.tree_map(_at_least_two, inputs)
    if any(one is not two for one, two in zip(pytree.tree_leaves(inputs), pytree.tree_leaves(doubled), strict=True)):
        yield doubled, _free_batch(module, inputs)
    yield inputs, _free_batch(module, inputs)


def _check_one_row(module: torch.nn.Module, program: ExportedProgram, inputs: tuple[Any, ...]) -> None:
    """Raise FoldError when the module calls other functions for one row than for two."""
    free = free_inputs(program)
    leaves, tree = pytree.tree_flatten(inputs)
    pairs = list(zip(_arguments(program), leaves, strict=True))
    resized = [[_rows(leaf, rows) if node.name in free else leaf for node, leaf in pairs] for rows in (1, 2)]
    one, two = (_calls(module, pytree.tree_unflatten(arguments, tree)) for arguments in resized)
    if one is not None and two is not None and one != two:
        raise FoldError(
            f"{type(module).__name__} computes something else for a batch of one than for larger ones, and one trace "
            "cannot hold for both; mend that, or state the sizes with dynamic_shapes (dynamic_batch=False in an export)"
        )


class _Recorder(TorchFunctionMode):
    """The functions of torch that are called, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls.append(str(getattr(func, "__qualname__", func)))
        return func(*args, **(kwargs or {}))


def _calls(module: torch.nn.Module, inputs: tuple[Any, ...]) -> list[str] | None:
    """What a copy of a module calls on inputs of these shapes, nothing computed; None where that cannot be told."""
    recorder = _Recorder()
    inert = copied(module).eval()
    try:
        with quiet(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = pytree.tree_map(lambda x: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x, inputs)
            with recorder:
                inert(*fake)
    except Exception as problem:  # whatever the network's own code raises on tensors without values
        _log.debug("%s cannot be followed without values: %s", type(module).__name__, problem)
        return None
    return recorder.calls


def _rows(tensor: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([tensor[:1]] * count)


def _is_free(program: ExportedProgram, inputs: tuple[Any, ...]) -> bool:
    """True when no argument of one row is fixed to the two rows that it was traced with."""
    free = free_inputs(program)
    pairs = zip(_arguments(program), pytree.tree_leaves(inputs), strict=True)
    return all(node.name in free for node, given in pairs if _at_least_two(given) is not given)


def _has_free_axis(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and fixed_size(value.shape[0]) is None


def _arguments(program: ExportedProgram) -> list[torch.fx.Node]:
    names = {
        spec.arg.name: spec
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT and hasattr(spec.arg, "name")
    }
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _free_batch(module: torch.nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Axis 0 of every tensor is free, unless the network fixes it; by the names of the arguments, as export wants."""
    free = pytree.tree_map(lambda x: {0: Dim.AUTO} if isinstance(x, torch.Tensor) and x.ndim else None, inputs)
    try:
        return dict(inspect.signature(module.forward).bind(*free).arguments)
    except (TypeError, ValueError):  # no signature that can be told, or arguments that do not fit it: export says so
        return free


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _at_least_two(value: Any) -> Any:
    """A tensor of one row with the row twice; anything else as it is."""
    is_single = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == 1
    return torch.cat([value, value]) if is_single else value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the tracer, which speak of its own insides, and without its log of what it tried."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _said(problem: BaseException | None) -> str:
    if isinstance(problem, GuardOnDataDependentSymNode):
        return "what is done there depends on the values of a tensor, and a trace holds for all values"
    return said(problem)


def _remedy(problem: BaseException | None) -> str:
    """What to try."""
    if isinstance(problem, GuardOnDataDependentSymNode):
        return "write that with torch.cond or torch.where, take it out of the module, or give an .onnx file"
    return "check that it runs in eval mode on the example inputs and calls nothing but torch, or give an .onnx file"


def _place(problem: BaseException | None) -> str:
    """Where in the user's own code it went wrong: the last frame outside of torch, by file name and line."""
    place = ""
    step = problem.__traceback__ if problem is not None else None
    while step is not None:
        code = step.tb_frame.f_code
        module = str(step.tb_frame.f_globals.get("__name__", ""))
        is_standard = code.co_filename.startswith(_STANDARD_LIBRARY) and "site-packages" not in code.co_filename
        is_written = not is_standard and not code.co_filename.startswith("<")  # that is made at run time
        if is_written and not module.startswith(("torch", "bnfold", "contextlib", "copy")):
            place = f" ({code.co_name}, line {step.tb_lineno} of {code.co_filename.rpartition('/')[2]})"
        step = step.tb_next
    return place
