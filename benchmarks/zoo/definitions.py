"""Networks of the zoo that no library has, or that are small enough for the test suite."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Airbench(nn.Module):
    """Conv → MaxPool → BN without gamma → GELU, as in the networks of cifar10-airbench (Jordan, arXiv 2404.00498)."""

    def __init__(self, widths: tuple[int, ...] = (64, 256, 256), classes: int = 10) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        blocks: list[nn.Module] = []
        before = 24
        for width in widths:
            blocks += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2), _without_gamma(width)]
            blocks += [nn.GELU(), nn.Conv2d(width, width, 3, padding=1, bias=False), _without_gamma(width), nn.GELU()]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W); gives (N, classes)."""
        x = self.blocks(F.gelu(self.whiten(x)))
        return self.head(x.amax((2, 3))) / 9.0


def _without_gamma(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12)
    del norm.weight
    norm.register_buffer("weight", torch.ones(width))
    return norm


class _Twice(nn.Sequential):
    """Conv → BN → ReLU, two times."""

    def __init__(self, before: int, width: int) -> None:
        layers: list[nn.Module] = []
        for channels in (before, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """An encoder and a decoder with skip connections (Ronneberger et al., arXiv 1505.04597).

    The ways up: ConvTranspose → BN → ReLU, and bilinear upsampling → BN; a BN also stands behind each concatenation.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), classes: int = 5) -> None:
        super().__init__()
        first, middle, last = widths
        self.down = nn.ModuleList([_Twice(3, first), _Twice(first, middle), _Twice(middle, last)])
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Sequential(nn.ConvTranspose2d(last, middle, 2, stride=2, bias=False), nn.BatchNorm2d(middle))
        self.joined = nn.ModuleList([nn.BatchNorm2d(2 * middle), nn.BatchNorm2d(2 * first)])
        self.right = nn.ModuleList([_Twice(2 * middle, middle), _Twice(2 * first, first)])
        self.narrow = nn.Conv2d(middle, first, 1, bias=False)
        self.scaled = nn.BatchNorm2d(first)
        self.head = nn.Conv2d(first, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W), H and W divisible by 4; gives (N, classes, H, W)."""
        first = self.down[0](x)
        middle = self.down[1](self.pool(first))
        up = F.relu(self.up(self.down[2](self.pool(middle))))
        x = self.right[0](self.joined[0](torch.cat([middle, up], 1)))
        up = F.interpolate(self.narrow(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(self.right[1](self.joined[1](torch.cat([first, self.scaled(up)], 1))))


class _Fire(nn.Module):
    """Squeeze, then two expanding convolutions side by side, and one BN on both (Iandola et al., arXiv 1602.07360)."""

    def __init__(self, before: int, squeezed: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(before, squeezed, 1), nn.BatchNorm2d(squeezed), nn.ReLU())
        self.one = nn.Conv2d(squeezed, width, 1)
        self.three = nn.Conv2d(squeezed, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return F.relu(self.norm(torch.cat([self.one(x), self.three(x)], 1)))


class SqueezeNet(nn.Sequential):
    """SqueezeNet 1.1 in small, with a BN behind each concatenation."""

    def __init__(self, classes: int = 100) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
            _Fire(32, 16, 32), _Fire(64, 16, 32), nn.MaxPool2d(3, 2, ceil_mode=True),
            _Fire(64, 32, 64), _Fire(128, 32, 64), nn.Dropout(), nn.Conv2d(128, classes, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(classes),
        )  # fmt: skip


class PreActivation(nn.Module):
    """ResNet v2 in small: BN → ReLU → Conv twice, and a bare skip (He et al., arXiv 1603.05027)."""

    def __init__(self, width: int = 16, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W); gives (N, classes)."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class _RepVggBlock(nn.Module):
    """Three branches of one input, each with its BN, summed (Ding et al., arXiv 2101.03697)."""

    def __init__(self, before: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.three = nn.Conv2d(before, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.three_norm = nn.BatchNorm2d(width)
        self.one = nn.Conv2d(before, width, 1, stride=stride, groups=groups, bias=False)
        self.one_norm = nn.BatchNorm2d(width)
        self.identity = nn.BatchNorm2d(width) if before == width and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.three_norm(self.three(x)) + self.one_norm(self.one(x))
        return F.relu(y if self.identity is None else y + self.identity(x))


class RepVgg(nn.Sequential):
    """RepVGG in small, with one depthwise block."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__(
            _RepVggBlock(3, width, 2, 1), _RepVggBlock(width, width, 1, 1), _RepVggBlock(width, 2 * width, 2, 1),
            _RepVggBlock(2 * width, 2 * width, 1, 2 * width), _RepVggBlock(2 * width, 2 * width, 1, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes),
        )  # fmt: skip


class _LinearNorm(nn.Module):
    """Linear on (N, L, F), then BN over F, by way of (N·L, F) (Graham et al., arXiv 2104.01136)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class _AttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _LinearNorm(width, 3 * width)
        self.proj = nn.Sequential(nn.Hardswish(), _LinearNorm(width, width))
        self.mlp = nn.Sequential(_LinearNorm(width, 2 * width), nn.Hardswish(), _LinearNorm(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, self.heads, -1).split([width // self.heads] * 3, dim=3)
        scores = q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1) * (width // self.heads) ** -0.5
        mixed = (scores.softmax(-1) @ v.permute(0, 2, 1, 3)).transpose(1, 2).reshape(batch, length, width)
        x = x + self.proj(mixed)
        return x + self.mlp(x)


class Attention(nn.Module):
    """LeViT in small: a stem of Conv → BN, attention with BN behind every dense layer, BN → Linear as the head."""

    def __init__(self, width: int = 32, blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, width // 4), (width // 4, width // 2), (width // 2, width)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.Hardswish()]
        self.stem = nn.Sequential(*layers[:-1])
        self.blocks = nn.Sequential(*(_AttentionBlock(width, 4) for _ in range(blocks)))
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W); gives (N, classes)."""
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x).mean(1)))
