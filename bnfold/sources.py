"""What a person may hand in to be folded: a checkpoint folder, an .onnx file, `module:factory`, or an object."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.bundle.parameters import SourceParameter
from bnfold.errors import DataError, FoldError
from bnfold.factories import is_spec
from bnfold.preprocessing import Preprocessing
from bnfold.samples import Array

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class Source:
    """A network as it came in: ONNX IR in `model`, or a torch module in `module` with example inputs.

    origin: what the manifest says of it, without absolute paths. held_out: gives inputs and labels that training
    never saw. parameters: gives those of a module; those of ONNX are the tensors of its graph. labels, preprocessing
    and output_kind are what the source itself knows.
    """

    name: str
    origin: Mapping[str, str]
    model: ir.Model | None = None
    module: Any = None
    example_inputs: tuple[Any, ...] = ()
    input_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    output_kind: str | None = None
    held_out: Callable[[], tuple[Array, Array]] | None = None
    parameters: Callable[[], tuple[SourceParameter, ...]] | None = None


def open_source(
    source: Any,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
    network: str | None = None,
) -> Source:
    """Open a source.

    source: a checkpoint folder, a path to .onnx, `module:factory` (a callable that gives a torch.nn.Module; with
    `weights`, a .safetensors or .pth file, and `input_shape` without the batch), a torch.nn.Module with
    `example_inputs`, an onnx.ModelProto or an onnx_ir.Model. network: the `module:factory` that a checkpoint folder
    names as what made its network, where that is not this package's; its code is run.

    Raises FoldError or DataError for what cannot be opened.
    """
    from bnfold.api import source_kind

    kind = source_kind(source)
    text = str(source) if kind == "path" else ""
    is_factory = is_spec(text) and not Path(text).exists()
    for what, given in (("weights go", weights), ("an input shape goes", input_shape)):
        if given is not None and not is_factory:
            raise DataError(f"{what} with a source of the form module:factory, not with {text or kind}; leave that out")
    path = Path(text)
    is_checkpoint = kind == "path" and not is_factory and path.is_dir()
    if network is not None and not is_checkpoint:
        raise DataError(
            f"the network {network:.300} goes with a checkpoint folder, not with {text or kind}; leave it out"
        )
    if kind == "module":
        return _of_module(source, example_inputs)
    if kind in ("proto", "ir"):
        return _of_onnx_object(source, kind)
    if kind == "program":
        raise FoldError("a bundle cannot be built from an ExportedProgram; give the torch.nn.Module or an .onnx")
    if is_factory:
        _need_torch(text)
        from bnfold.torch_sources import open_factory

        return open_factory(text, weights=weights, input_shape=input_shape)
    if is_checkpoint:
        _need_torch(text)
        from bnfold.torch_sources import open_checkpoint

        return open_checkpoint(path, network)
    if not path.exists():
        raise DataError(f"{path} is not there; expected a checkpoint folder, an .onnx file, or module:factory")
    if path.suffix != ".onnx":
        raise DataError(
            f"{path} is no source that is known; expected a checkpoint folder, an .onnx file, or module:factory"
        )
    return _of_onnx_file(path)


def _of_onnx_file(path: Path) -> Source:
    from bnfold.folding import onnx_file

    model = onnx_file.load_model(path)
    return Source(name=path.stem, model=model, origin={"kind": "onnx", "file": path.name, "sha256": file_sha256(path)})


def _of_onnx_object(source: Any, kind: str) -> Source:
    from bnfold.folding import onnx_file

    model = onnx_file.from_proto(source) if kind == "proto" else source
    return Source(name=str(model.graph.name or "model"), model=model, origin={"kind": "onnx"})


def _of_module(module: Any, example_inputs: tuple[Any, ...] | None) -> Source:
    if not isinstance(example_inputs, tuple) or not example_inputs:
        raise FoldError("a torch.nn.Module needs example_inputs, a non-empty tuple of its arguments; found none")
    kind = type(module)
    origin = {"kind": "module", "class": f"{kind.__module__}.{kind.__qualname__}".replace("<locals>", "locals")}
    from bnfold.torch_sources import parameters_of

    return Source(
        name=kind.__name__,
        module=module,
        example_inputs=example_inputs,
        origin=origin,
        parameters=lambda: parameters_of(module),
    )


def _need_torch(text: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise FoldError(
            f"{text} is a PyTorch source and torch is not installed; "
            "install bnfold with the extra `torch`, or give an .onnx file"
        )


def file_sha256(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
