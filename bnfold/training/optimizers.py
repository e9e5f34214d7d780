"""The optimiser of a recipe, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from bnfold.training.recipe import Optimizer

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # batch norms and instance norms are the first


def build_optimizer(network: nn.Module, wanted: Optimizer) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only, not on vectors, norms and biases. Frozen parameters are left out."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    spared = {id(parameter) for parameter in _spared(network)}
    groups = [
        {"params": [p for p in parameters if id(p) not in spared], "weight_decay": wanted.weight_decay},
        {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
    ]
    if wanted.kind == "adamw":
        return torch.optim.AdamW(groups, lr=wanted.learning_rate, betas=(wanted.momentum, 0.999))
    return torch.optim.SGD(groups, lr=wanted.learning_rate, momentum=wanted.momentum, nesterov=wanted.momentum > 0)


def _spared(network: nn.Module) -> Iterator[nn.Parameter]:
    """Norms and biases: in a network of the user's own they may have the shape of a picture, (C, 1, 1) or (C, H, W)."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim <= 1 or name == "bias" or isinstance(module, _NORMS):
                yield parameter


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, torch.Tensor]:
    """The state by `<parameter>/<quantity>`; parameters that have not had a gradient yet have none."""
    return {
        f"{name}/{quantity}": value
        for name, parameter in network.named_parameters()
        for quantity, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def blank_tensors(
    optimizer: torch.optim.Optimizer, network: nn.Module, names: Mapping[str, object]
) -> dict[str, torch.Tensor]:
    """A state to be filled in, of every parameter that `names` has a quantity of, as the first step would make it."""
    adamw = isinstance(optimizer, torch.optim.AdamW)
    momentum = not adamw and optimizer.param_groups[0]["momentum"] > 0
    quantities = ["exp_avg", "exp_avg_sq"] if adamw else ["momentum_buffer"] if momentum else []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and any(f"{name}/{quantity}" in names for quantity in quantities):
            state = {quantity: torch.zeros_like(parameter) for quantity in quantities}
            optimizer.state[parameter] = {"step": torch.zeros(())} | state if adamw else state
    return optimizer_tensors(optimizer, network)
