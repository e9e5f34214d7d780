"""Sources that need torch: checkpoint folders, and `module:factory` with weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bnfold.bundle import SourceParameter, hash_tensor
from bnfold.errors import DataError, first_line
from bnfold.factories import make
from bnfold.folding.torch_tensors import to_numpy
from bnfold.sources import Source, file_sha256


def open_checkpoint(folder: Path, network: str | None) -> Source:
    """A checkpoint folder of the trainer. network: as for `Checkpoint.module`. Raises DataError for a damaged one, one
    that is none, and one that needs another network.
    """
    from bnfold.training import load_checkpoint

    checkpoint = load_checkpoint(folder)
    module = checkpoint.module(network)
    return Source(
        name=checkpoint.name,
        origin={
            "kind": "checkpoint",
            "name": checkpoint.name,
            "weights_sha256": file_sha256(folder / "weights.safetensors"),
        },
        module=module,
        example_inputs=checkpoint.example_inputs(),
        input_names=("input",),
        output_names=(checkpoint.output_kind,),
        labels=checkpoint.labels,
        preprocessing=checkpoint.preprocessing,
        output_kind=checkpoint.output_kind,
        held_out=checkpoint.held_out,
        parameters=lambda: parameters_of(module),
    )


def open_factory(spec: str, *, weights: Path | str | None, input_shape: Sequence[int] | None) -> Source:
    """A network by `module:factory`, found from the current folder on. Raises DataError when it cannot be made."""
    if input_shape is None:
        raise DataError(f"{spec} needs the shape of one input without the batch; give --input-shape, say 3,224,224")
    if not input_shape or min(input_shape) < 1:
        raise DataError(f"the input shape {list(input_shape)} is none; expected sizes of 1 or more, say 3,224,224")
    module = _made(spec)
    origin = {"kind": "factory", "factory": spec}
    if weights is not None:
        path = Path(weights)
        _load(module, path)
        origin |= {"weights": path.name, "weights_sha256": file_sha256(path)}
    example = torch.zeros((2, *input_shape), dtype=next((p.dtype for p in module.parameters()), torch.float32))
    name = spec.partition(":")[2].rpartition(".")[2]
    return Source(
        name=name,
        origin=origin,
        module=module.eval(),
        example_inputs=(example,),
        parameters=lambda: parameters_of(module),
    )


def parameters_of(module: torch.nn.Module) -> tuple[SourceParameter, ...]:
    """Every parameter and buffer of a module by its qualified name, shared ones under each of their names."""
    named = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    stored = {name: tensor.detach().cpu() for name, tensor in named.items() if not tensor.is_meta}
    twins: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in stored.items():
        twins.setdefault(_storage(tensor), []).append(name)
    return tuple(
        SourceParameter(
            name, hash_tensor(to_numpy(tensor)), tuple(twin for twin in twins[_storage(tensor)] if twin != name)
        )
        for name, tensor in stored.items()
    )


def _storage(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for tensors that are one and the same memory; those without elements have none."""
    place = tensor.data_ptr() if tensor.numel() else id(tensor)
    return place, tuple(tensor.shape), tensor.stride(), tensor.dtype


def _made(spec: str) -> torch.nn.Module:
    made = make(spec, spec, () if "" in sys.path else (Path.cwd(),))
    if not isinstance(made, torch.nn.Module):
        raise DataError(f"{spec} gave an object of type {type(made).__name__}, expected a torch.nn.Module")
    return made


def _load(module: torch.nn.Module, path: Path) -> None:
    """Load a state dict strictly. A .pth is read with weights_only, so that no pickled code runs."""
    if not path.is_file():
        raise DataError(f"the weights {path} are not there; expected a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 -- the one reader of .pth
    except Exception as problem:  # unpickling and safetensors raise nearly any type on hostile bytes
        raise DataError(f"the weights {path} cannot be read: {first_line(problem)}") from problem
    if not isinstance(state, Mapping):
        raise DataError(f"the weights {path} hold a {type(state).__name__}, expected a state dict of names and tensors")
    try:
        module.load_state_dict(dict(state), strict=True)
    except (RuntimeError, TypeError, AttributeError) as problem:
        lines = [line.strip() for line in str(problem).splitlines()]
        raise DataError(f"the weights {path} do not fit the network: {' '.join(lines[1:3])[:300]}") from None
