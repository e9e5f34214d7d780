"""A convolution or a dense layer with its norm and its activation, in either order; the keys that say so."""

from __future__ import annotations

from typing import Literal

from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.norms import FeatureNorm, Norm, make_feature_norm, make_norm

Order = Literal["norm_first", "activation_first"]
Stem = Literal["cifar", "imagenet"]
Init = Literal["default", "he"]


# Keys that several kinds of network have, each under this one name and type.
ORDER = key(
    "`norm_first`: layer, norm, activation; `activation_first`: layer, activation, norm, and the layer has a bias",
    "norm_first",
)
STEM = key(
    "`cifar`: the first layer keeps the size of small pictures; `imagenet`: it reduces that of large ones", "cifar"
)
BIAS = key(
    "a layer right before a norm has a bias too, which the mean of a batch norm takes away again",
    False,
)
INIT = key("of the weights: torch's `default`; `he`: He et al. 2015 (arXiv 1502.01852), and biases of zero", "default")


def dense(inputs: int, width: int, norm: FeatureNorm, order: Order, *, bias: bool) -> list[nn.Module]:
    """Linear, norm and ReLU. bias: of the layer, also where a norm, which has its own, comes right behind."""
    linear = nn.Linear(inputs, width, bias=bias or needs_bias(norm, order))
    return [linear, *_ordered([] if norm == "none" else [make_feature_norm(norm, width)], nn.ReLU(), order)]


def conv(
    channels: int,
    width: int,
    size: int,
    norm: Norm,
    *,
    stride: int = 1,
    groups: int = 1,
    order: Order = "norm_first",
    activation: nn.Module | None = None,
    bias: bool,
) -> list[nn.Module]:
    """A convolution that keeps the size at stride 1, its norm, and an activation where one is given.

    bias: of the convolution, also where a norm comes right behind.
    """
    bias = bias or needs_bias(norm, order)
    layer = nn.Conv2d(channels, width, size, stride, padding=size // 2, groups=groups, bias=bias)
    return [layer, *_ordered([] if norm == "none" else [make_norm(norm, width)], activation, order)]


def needs_bias(norm: str, order: Order = "norm_first") -> bool:
    """Whether a layer needs its own bias: a norm right behind it would take a bias away and put its own in."""
    return norm == "none" or order == "activation_first"


def _ordered(norm: list[nn.Module], activation: nn.Module | None, order: Order) -> list[nn.Module]:
    if activation is None:
        return norm
    return [*norm, activation] if order == "norm_first" else [activation, *norm]


def initialise(network: nn.Module, init: Init) -> nn.Module:
    """The same network, its convolutions and dense layers drawn anew unless torch's default will do."""
    if init == "he":
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return network
