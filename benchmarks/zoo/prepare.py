"""Step `prepare`: a network with random statistics, its float64 truth, its unfolded export, and torch's own folds."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

import bnfold
from bnfold.folding.torch_trace import trace_module
from zoo.files import Folder, error
from zoo.networks import Network
from zoo.peers import judge
from zoo.statistics import images, norms_of, randomise

BATCH = 2  # images for the comparisons, of networks of full size


def build(network: Network) -> tuple[nn.Module, torch.Tensor]:
    """The network with its random weights and statistics, and the images to compare on. The same each time."""
    torch.manual_seed(0)
    module = network.make()
    x = images(network.shape)
    randomise(module, x)
    return module, x if network.source == "zoo" else x[:BATCH].clone()


def run(module: nn.Module, x: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """The one output of a module."""
    with torch.no_grad():
        y = module(x)
    if not isinstance(y, torch.Tensor):
        raise TypeError(f"{type(module).__name__} gives a {type(y).__name__}; the zoo compares single tensors")
    return y.numpy()


def prepare(network: Network, folder: Folder) -> dict[str, Any]:
    """Build, write x, truth, unfolded.onnx, default.onnx and, where a library has hooks for it, hooks.onnx."""
    module, x = build(network)
    truth = run(copy.deepcopy(module).double(), x.double())
    folder.save("x", x.numpy())
    folder.save("truth", truth)
    start = time.perf_counter()
    bnfold.export_onnx(module, (x,), folder.model("unfolded"))
    return {
        "source": network.source,
        "shape": list(network.shape),
        "norms": len(norms_of(module)),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "export_seconds": time.perf_counter() - start,
        "torch_float32_error": error(run(module, x), truth),
        "torch.fx fuse": _fuse(module, x, truth),
        "default export": _export(module, x, folder, "default"),
        "class hooks": _with_hooks(module, x, folder),
    }


def _fuse(module: nn.Module, x: torch.Tensor, truth: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
    """torch.fx.experimental.optimization.fuse on the module as it is."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.fx.experimental import optimization

            fused = optimization.fuse(copy.deepcopy(module).eval())
    except Exception as problem:  # whatever the tracer raises on the network's own code
        return {"failed": _first_line(problem)}
    seconds = time.perf_counter() - start
    left = 0
    for node in fused.graph.nodes:
        if node.op == "call_module":
            left += isinstance(fused.get_submodule(str(node.target)), nn.modules.batchnorm._BatchNorm)
        left += node.op == "call_function" and node.target is nn.functional.batch_norm
    return {"left": left, "seconds": seconds, "error": error(run(fused, x), truth)}


def _export(module: nn.Module, x: torch.Tensor, folder: Folder, name: str) -> dict[str, Any]:
    """torch.onnx.export with its optimisations, as it comes, with a free batch."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(trace_module(module, (x,)), dynamo=True, verbose=False)
            if made is None:
                raise RuntimeError("torch.onnx.export gave nothing")
            made.save(folder.model(name), external_data=False)
    except Exception as problem:
        return {"failed": _first_line(problem)}
    return {"seconds": time.perf_counter() - start, **judge(name, folder)}


def _with_hooks(module: nn.Module, x: torch.Tensor, folder: Folder) -> dict[str, Any]:
    """The default export of what the classes' own hooks make (RepVGG, MobileOne, ...), where there are any."""
    hooks = ("reparameterize", "switch_to_deploy", "fuse")
    if not any(callable(getattr(inner, hook, None)) for inner in module.modules() for hook in hooks):
        return {}
    from timm.utils import reparameterize_model

    return _export(reparameterize_model(copy.deepcopy(module)), x, folder, "hooks")


def _first_line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0]}"[:200]
