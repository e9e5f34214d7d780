"""The networks of the zoo, by name: from timm and torchvision where they have them, else from `zoo.definitions`."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from zoo import definitions

Source = str  # "timm", "torchvision" or "zoo"


@dataclass(frozen=True)
class Network:
    """A network of the zoo. shape: of one input, (C, H, W); `make` builds it in training form, weights at random."""

    name: str
    source: Source
    shape: tuple[int, ...]
    make: Callable[[], nn.Module]

    @property
    def is_installed(self) -> bool:
        """Whether the library that it comes from is there."""
        return self.source == "zoo" or importlib.util.find_spec(self.source) is not None


@functools.cache
def _define_missing_operators() -> list[torch.library.Library]:
    """torchvision without its compiled extension, on a torch that it was not built for, asks for these two operators.

    Nothing here calls them. They stay defined as long as the list is alive.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return [library]


def _from_timm(name: str) -> nn.Module:
    _define_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # renamed models say so
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _from_torchvision(name: str) -> nn.Module:
    _define_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiled extension is not needed
        from torchvision import models

        return models.get_model(name, weights=None)


def _timm(name: str, size: int = 224) -> Network:
    return Network(name, "timm", (3, size, size), functools.partial(_from_timm, name))


def _torchvision(name: str, size: int = 224) -> Network:
    return Network(name, "torchvision", (3, size, size), functools.partial(_from_torchvision, name))


def _own(make: Callable[[], nn.Module], name: str, *shape: int) -> Network:
    return Network(name, "zoo", shape, make)


_NETWORKS = (
    _timm("resnet18"),
    _timm("resnet50"),
    _timm("seresnet50"),
    _timm("res2net50_26w_4s"),
    _timm("resnetv2_50"),
    _timm("vgg16_bn"),
    _timm("densenet121"),
    _timm("inception_v3", 299),
    _timm("legacy_xception", 299),
    _timm("dpn48b"),
    _timm("hrnet_w18_small"),
    _timm("cspdarknet53", 256),
    _timm("regnetx_002"),
    _timm("regnety_002"),
    _timm("mobilenetv2_100"),
    _timm("mobilenetv3_large_100"),
    _timm("mnasnet_100"),
    _timm("mixnet_s"),
    _timm("efficientnet_b0"),
    _timm("ghostnet_100"),
    _timm("rexnet_100"),
    _timm("starnet_s1"),
    _timm("convmixer_768_32", 112),
    _timm("repvgg_a0"),
    _timm("mobileone_s0"),
    _timm("fastvit_t8", 256),
    _timm("repghostnet_050"),
    _timm("repvit_m0_9"),
    _timm("levit_128s"),
    _timm("mobilevit_xxs", 256),
    _timm("efficientvit_b0"),
    _torchvision("shufflenet_v2_x1_0"),
    _own(definitions.Airbench, "airbench", 3, 32, 32),
    _own(definitions.UNet, "unet", 3, 96, 96),
    _own(definitions.SqueezeNet, "squeezenet_bn", 3, 128, 128),
    _own(definitions.PreActivation, "preactivation_small", 3, 32, 32),
    _own(definitions.RepVgg, "repvgg_small", 3, 32, 32),
    _own(definitions.Attention, "levit_small", 3, 64, 64),
)  # fmt: skip

NETWORKS = {network.name: network for network in _NETWORKS}
