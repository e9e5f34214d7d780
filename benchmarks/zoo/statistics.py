"""Random statistics that hide nothing: far from their defaults, gamma of both signs, and activations of size one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

SAMPLES = 8  # for the statistics; enough to tell the channels apart


def norms_of(module: nn.Module) -> list[_BatchNorm]:
    """Every batch norm module, each once."""
    return [inner for inner in module.modules() if isinstance(inner, _BatchNorm)]


def images(shape: tuple[int, ...], *, count: int = SAMPLES, seed: int = 0) -> Tensor:
    """(count, *shape), float32: smooth noise of several scales, brightness and contrast, so that inputs differ."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    total = torch.zeros(count, *shape)
    for cells in (2, 5, 16):
        coarse = torch.randn(count, channels, min(cells, height), min(cells, width), generator=generator)
        total += nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    total += 0.3 * torch.randn(count, *shape, generator=generator)
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    return 0.6 * contrast * total + 0.5 * torch.randn(count, channels, 1, 1, generator=generator)


@torch.no_grad()
def randomise(module: nn.Module, x: Tensor, *, seed: int = 0) -> None:
    """Give every norm of a module random gamma, beta, mean and variance, and put the module in eval mode.

    gamma: 0.5 to 1.5 in size, negative for one channel in three; beta: N(0, 0.3). The statistics are those of the
    norm's input in one forward pass on x, but each mean is moved by N(0, 0.2) deviations and each variance is
    multiplied by 0.7 to 1.4, evenly in the logarithm; what comes later in the pass sees the outcome. Parameters that
    are the same everywhere (biases at 0, layer scales at 1e-5) become random too: what is at its default hides bugs.

    x: (N, C, H, W); a test on the same images meets activations of reasonable size. On others a random network of
    fifty layers may go anywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            _randomise_flat(parameter, generator)
    module.eval()
    pending = set(norms_of(module))

    def calibrate(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        if norm not in pending:  # a norm that is called twice takes the statistics of its first call
            return
        pending.remove(norm)
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise ValueError(f"{type(norm).__name__} has no running statistics")
        if norm.affine and isinstance(norm.weight, nn.Parameter):
            norm.weight.copy_(_gamma(norm.num_features, generator))
            norm.bias.copy_(0.3 * torch.randn(norm.num_features, generator=generator))
        by_channel = inputs[0].transpose(0, 1).flatten(1)
        middle = by_channel.mean(1)
        # A channel that hardly changes on these images would amplify the rounding of all that comes before it.
        spread = torch.maximum(by_channel.var(1), (0.25 * middle).square()).clamp(min=1e-3)
        mean.copy_(middle + 0.2 * spread.sqrt() * torch.randn(mean.shape, generator=generator))
        variance.copy_(spread * torch.exp(math.log(2.0) * (torch.rand(variance.shape, generator=generator) - 0.5)))

    hooks = [norm.register_forward_pre_hook(calibrate) for norm in pending]
    module(x)
    for hook in hooks:
        hook.remove()
    if pending:
        raise ValueError(f"{len(pending)} norms of {type(module).__name__} are never called")


def _gamma(channels: int, generator: torch.Generator) -> Tensor:
    sign = torch.where(torch.rand(channels, generator=generator) < 1 / 3, -1.0, 1.0)
    return sign * (0.5 + torch.rand(channels, generator=generator))


def _randomise_flat(parameter: nn.Parameter, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if bool((parameter == 0).all()):
        parameter.copy_(0.1 * noise)
    else:
        parameter.copy_(torch.sign(noise) * (0.3 + 0.5 * torch.rand(parameter.shape, generator=generator)))
