"""Networks in torch in which a norm has to pass a carrier, one pattern each, and what must become of their norms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch_networks import CASES, Case, Folded, Frozen, Written, chain, conv, folded_case, norm, wired

FOLDED = ("folded", "")


class Layers(nn.Module):
    """Functions as layers."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def step(function: Callable[[torch.Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Layers(function)


def dense(*args: Any, **given: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(*args, **given)


def norm1(*args: Any, **given: Any) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm1d(*args, **given)


def behind(function: Callable[[torch.Tensor], Any], channels: int = 4) -> Callable[[], nn.Module]:
    """conv, carrier, norm."""
    return chain(conv(3, 4, 3), step(function), norm(channels))


def before(function: Callable[[torch.Tensor], Any], last: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """norm, carrier, linear."""
    return chain(norm(4), step(function), last)


class LayerScale(nn.Module):
    """A factor for each channel (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gamma * x


class Renorm(nn.Module):
    """Batch renormalisation in eval mode (Ioffe 2017, arXiv 1702.03275): running statistics, then gamma and beta."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_std_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def along(vector: torch.Tensor) -> torch.Tensor:
            return vector[None, :, None, None]

        return (x - along(self.running_mean)) / along(self.running_std_var) * along(self.gamma) + along(self.beta)


class Residual(nn.Module):
    """A basic block as torchvision writes it (He et al. 2016): in place, the sum too."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class RepVGG(nn.Module):
    """A block in its training form (Ding et al. 2021, arXiv 2101.03697)."""

    def __init__(self, channels: int = 4, groups: int = 1) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(channels)
        )
        self.point = nn.Sequential(
            nn.Conv2d(channels, channels, 1, groups=groups, bias=False), nn.BatchNorm2d(channels)
        )
        self.skip = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.dense(x) + self.point(x) + self.skip(x))


class Levit(nn.Module):
    """Linear and norm over (N, L, F), flattened for the norm (Graham et al. 2021, arXiv 2104.01136)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


class Tokens(nn.Module):
    """Patches as tokens: the channels move to the last axis."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.patches, self.layers = nn.Conv2d(3, 4, 2, stride=2), nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.patches(x).flatten(2).transpose(1, 2))


class Mean(nn.Module):
    """(x - mean) / std per channel, as networks that take raw pixels begin."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


IMAGE, MAPS, ROWS = (3, 8, 8), (4, 8, 8), (5, 5)
BEHIND: dict[str, tuple[Callable[[torch.Tensor], Any], int]] = {
    "max pool": (lambda x: F.max_pool2d(x, 2), 4),
    "padded max pool": (lambda x: F.max_pool2d(x, 3, 2, 1), 4),
    "max pool with its indices read": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], 4),
    "average pool": (lambda x: F.avg_pool2d(x, 2), 4),
    "padded average pool": (lambda x: F.avg_pool2d(x, 3, 2, 1), 4),
    "padded average pool that leaves the border out": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), 4,
    ),
    "average pool with a divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), 4),
    "adaptive average pool": (lambda x: F.adaptive_avg_pool2d(x, 2), 4),
    "global average pool": (lambda x: F.adaptive_avg_pool2d(x, 1), 4),
    "mean over space": (lambda x: x.mean((2, 3), keepdim=True), 4),
    "largest over space": (lambda x: x.amax((2, 3), keepdim=True), 4),
    "relu": (F.relu, 4),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.2), 4),
    "gelu": (F.gelu, 4),
    "nearest upsampling": (lambda x: F.interpolate(x, scale_factor=2), 4),
    "bilinear upsampling": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 4),
    "bicubic upsampling": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True), 4),
    "smooth downsampling": (lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True), 4),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), 1),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 16),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), 4),
    "reflected border": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 4),
    "repeated border": (lambda x: F.pad(x, (1, 0, 0, 1), mode="replicate"), 4),
    "border of the other side": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), 4),
    "border of zeros": (lambda x: F.pad(x, (1, 1, 1, 1)), 4),
    "slice of the channels": (lambda x: x[:, 1:3], 2),
    "slice of the space": (lambda x: x[:, :, 1:5, 2:], 4),
    "channels turned round": (lambda x: x.flip(1), 4),
    "channels in another order": (lambda x: x[:, [2, 0, 1, 3]], 4),
    "space turned": (lambda x: x.transpose(2, 3), 4),
    "one axis more and one less": (lambda x: x.unsqueeze(1).squeeze(1), 4),
    "space flattened and back": (lambda x: x.flatten(2).unflatten(2, (x.shape[2], x.shape[3])), 4),
    "groups of channels": (lambda x: x.unflatten(1, (2, 2)).flatten(1, 2), 4),
    "sum with itself": (lambda x: x + x, 4),
    "sigmoid": (torch.sigmoid, 4),
}  # fmt: skip

BEFORE: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[], nn.Module]]] = {
    "nothing": (lambda x: x, conv(4, 5, 3)),
    "padding": (lambda x: x, conv(4, 5, 3, padding=1)),
    "a transposed convolution": (lambda x: x, lambda: nn.ConvTranspose2d(4, 5, 2)),
    "relu": (F.relu, conv(4, 5, 3)),
    "flatten, to a dense layer": (lambda x: x.flatten(1), dense(256, 5)),
    "global average pool, to a dense layer": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), dense(4, 5)),
    "mean, to a dense layer": (lambda x: x.mean((2, 3)), dense(4, 5)),
    "tokens, to a dense layer": (lambda x: x.flatten(2).transpose(1, 2), dense(4, 5)),
    "last axis, to a dense layer": (lambda x: x.permute(0, 2, 3, 1), dense(4, 5)),
    "average pool": (lambda x: F.avg_pool2d(x, 2), conv(4, 5, 3)),
    "max pool": (lambda x: F.max_pool2d(x, 2), conv(4, 5, 3)),
    "upsampling": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), conv(4, 5, 3)),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), conv(1, 5, 3)),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), conv(16, 5, 3)),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), conv(4, 6, 3, groups=2)),
    "reflected border": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), conv(4, 5, 3)),
    "border of zeros": (lambda x: F.pad(x, (1, 1, 1, 1)), conv(4, 5, 3)),
    "slice of the channels": (lambda x: x[:, 1:3], conv(2, 5, 3)),
    "concatenation with itself": (lambda x: torch.cat([x, x.flip(1)], 1), conv(8, 5, 3)),
    "split in two and summed": (lambda x: (p := x.chunk(2, 1), p[0] + p[1])[1], conv(2, 5, 3)),
}

OTHER, AXIS, NONLINEAR, NO_LINEAR = (
    ("kept", code) for code in ("OTHER_READER", "AXIS_MISMATCH", "NONLINEAR", "NO_LINEAR_BEFORE")
)
NEGATIVE, COUNTED, PAD_VALUE, PAD_SHIFT = (
    ("kept", code) for code in ("NEGATIVE_SCALE_THROUGH_MAXPOOL", "COUNTED_PADDING", "PAD_VALUE", "PAD_SHIFT")
)

# What is not folded by the default moves, and why.
ROWS_BEHIND = {
    **dict.fromkeys(("max pool", "padded max pool", "max pool with its indices read", "largest over space"), NEGATIVE),
    **dict.fromkeys(("padded average pool", "average pool with a divisor"), COUNTED),
    **dict.fromkeys(("relu", "leaky relu", "gelu"), NONLINEAR),
    "pixel unshuffle": AXIS,
    "border of zeros": PAD_VALUE,
    "sigmoid": NO_LINEAR,
}
ROWS_BEFORE = {
    **dict.fromkeys(("padding", "a transposed convolution"), PAD_SHIFT),
    "relu": NO_LINEAR,
    "max pool": NEGATIVE,
    "pixel shuffle": AXIS,
    "border of zeros": PAD_VALUE,
    "split in two and summed": OTHER,
}
# What moves="all" makes of the norms of some.
ALL_MOVES = {
    "conv called twice": FOLDED,
    "behind padded average pool": ("reduced", "COUNTED_PADDING"),
    "behind average pool with a divisor": ("reduced", "COUNTED_PADDING"),
    "behind border of zeros": ("reduced", "PAD_VALUE"),
    "before padding": ("reduced", "PAD_SHIFT"),
    "before a transposed convolution": ("reduced", "PAD_SHIFT"),
    "relu, every scale positive": ("reduced", "NONLINEAR"),
    "activation, norm, padded convolution": FOLDED,
    "input normalisation before padding": ("reduced", "PAD_SHIFT"),
}

OTHERS: dict[str, Case] = {
    "airbench": Case(
        chain(conv(3, 4, 3), lambda: nn.MaxPool2d(2), norm(4), nn.GELU), IMAGE, (FOLDED,), positive=True
    ),
    "max pool, every scale positive": Case(
        chain(conv(3, 4, 3), lambda: nn.MaxPool2d(3, 2, 1), norm(4)), IMAGE, (FOLDED,), positive=True
    ),
    "relu, every scale positive": Case(
        chain(conv(3, 4, 3), nn.ReLU, norm(4)), IMAGE, (NONLINEAR,), positive=True
    ),
    "prelu": Case(chain(conv(3, 4, 3), lambda: nn.PReLU(4), norm(4)), IMAGE, (NONLINEAR,)),
    "concatenation of two": Case(
        wired(
            lambda m, x: m.bn(torch.cat([m.one(x), m.two(x)], 1)), one=conv(3, 4, 3), two=conv(3, 2, 3), bn=norm(6)
        ),
        IMAGE, (FOLDED,),
    ),
    "concatenation with a graph input": Case(
        wired(lambda m, x: m.bn(torch.cat([m.one(x), x], 1)), one=conv(3, 4, 3, padding=1), bn=norm(7)),
        IMAGE, (NO_LINEAR,),
    ),
    "sum of two": Case(
        wired(
            lambda m, x: m.bn(m.one(x) - m.two(x)), one=conv(3, 4, 3), two=conv(3, 4, 3, groups=1), bn=norm(4)
        ),
        IMAGE, (FOLDED,), whole=False,
    ),
    "sum of two of different sizes": Case(
        wired(lambda m, x: m.bn(m.one(x) + m.two(x)), one=conv(3, 4, 3), two=conv(3, 4, 8), bn=norm(4)),
        IMAGE, (FOLDED,),
    ),
    "parts with a norm each": Case(
        wired(
            lambda m, x: (p := m.conv(x).chunk(2, 1), m.a(p[0]), m.b(p[1]))[1:],
            conv=conv(3, 4, 3), a=norm(2), b=norm(2),
        ),
        IMAGE, (FOLDED, FOLDED),
    ),
    "one part with a norm": Case(
        wired(lambda m, x: (p := m.conv(x).split([1, 3], 1), m.bn(p[1]), p[0])[1:], conv=conv(3, 4, 3), bn=norm(3)),
        IMAGE, (FOLDED,),
    ),
    "residual block": Case(Residual, MAPS, (FOLDED, FOLDED)),
    "residual blocks": Case(chain(conv(3, 4, 3), Residual, Residual), IMAGE, (FOLDED,) * 4),
    "rep block": Case(RepVGG, MAPS, (FOLDED,) * 3, whole=False),
    "rep block with groups": Case(lambda: RepVGG(4, 2), MAPS, (FOLDED,) * 3, whole=False),
    "pre-activation": Case(
        chain(norm(4), nn.ReLU, conv(4, 4, 3, padding=1), norm(4), nn.ReLU, conv(4, 4, 3, padding=1)),
        MAPS, (NO_LINEAR, FOLDED),
    ),
    "activation, norm, convolution": Case(
        chain(conv(3, 4, 3), nn.SiLU, norm(4), conv(4, 5, 3)), IMAGE, (FOLDED,)
    ),
    "activation, norm, padded convolution": Case(
        chain(conv(3, 4, 3), nn.ReLU, norm(4), conv(4, 5, 3, padding=1)), IMAGE, (PAD_SHIFT,)
    ),
    "levit": Case(Levit, ROWS, (FOLDED,)),
    "tokens": Case(lambda: Tokens(Written(4, rank=3, axis=2), nn.Linear(4, 6)), IMAGE, (FOLDED,)),
    "layer scale": Case(
        chain(conv(3, 4, 3), lambda: LayerScale((4, 1, 1)), conv(4, 5, 1)), IMAGE, (FOLDED,)
    ),
    "layer scale over tokens": Case(lambda: Tokens(nn.Linear(4, 6), LayerScale((6,))), IMAGE, (FOLDED,)),
    "input normalisation": Case(chain(Mean, conv(3, 4, 3)), IMAGE, (FOLDED,)),
    "input normalisation before padding": Case(chain(Mean, conv(3, 4, 3, padding=1)), IMAGE, (PAD_SHIFT,)),
    "synchronised": Case(
        chain(conv(3, 4, 3), lambda: nn.SyncBatchNorm(4), nn.ReLU), IMAGE, (FOLDED,)
    ),
    "instance norm before": Case(
        chain(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), conv(4, 5, 3)), MAPS, (FOLDED,)
    ),
    "frozen before": Case(chain(lambda: Frozen(4), conv(4, 5, 3)), MAPS, (FOLDED,)),
    "batch renormalisation": Case(chain(conv(3, 4, 3), lambda: Renorm(4)), IMAGE, (FOLDED,)),
    "dense, activation, norm, dense": Case(
        chain(dense(5, 6), nn.ReLU, norm1(6), dense(6, 3)), (5,), (FOLDED,)
    ),
    "forward in float16": Case(chain(norm(4), conv(4, 5, 3), nn.Flatten), MAPS, (FOLDED,), dtype=torch.float16),
    "forward in bfloat16": Case(chain(norm(4), conv(4, 5, 3), nn.Flatten), MAPS, (FOLDED,), dtype=torch.bfloat16),
    "forward in float64": Case(chain(norm(4), conv(4, 5, 3), nn.Flatten), MAPS, (FOLDED,), dtype=torch.float64),
}  # fmt: skip

CARRIERS: dict[str, Case] = {
    **{
        f"behind {name}": Case(behind(*given), IMAGE, (ROWS_BEHIND.get(name, FOLDED),))
        for name, given in BEHIND.items()
    },
    **{
        f"before {name}": Case(before(*given), MAPS, (ROWS_BEFORE.get(name, FOLDED),)) for name, given in BEFORE.items()
    },
    **OTHERS,
}

ALL = CASES | CARRIERS


@functools.cache
def fold_case(name: str) -> Folded:
    """A case of either list, folded by the default moves."""
    return folded_case(ALL[name])
