"""Random small networks through torch.export, folded by both sets of moves; the oracle is the unfolded network."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch_networks import as_good, digest, randomised, storages

from bnfold.folding.torch_graph import fold_module

# What these run is measured by the tests that name it; to measure it here too would take more than twice the time.
pytestmark = pytest.mark.no_cover


class Branches(nn.Module):
    """The same input through several chains, then summed or put behind one another."""

    def __init__(self, chains: Sequence[nn.Module], *, summed: bool) -> None:
        super().__init__()
        self.chains, self.summed = nn.ModuleList(chains), summed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [chain(x) for chain in self.chains]
        if not self.summed:
            return torch.cat(parts, 1)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


class Parts(nn.Module):
    """Half of the channels through each of two chains."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = x.chunk(2, 1)
        return torch.cat([self.second(two), self.first(one)], 1)


class Step(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


STEPS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: F.relu(x * 1.0, inplace=True),
    lambda x: F.leaky_relu(x, 0.3),
    F.gelu,
    F.hardswish,
    lambda x: F.max_pool2d(x, 3, 1, 1),
    lambda x: F.avg_pool2d(x, 3, 1, 1),
    lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")[:, :, ::2, 1::2],
    lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    lambda x: F.channel_shuffle(x, 2),
    lambda x: x.flip(1),
    lambda x: x.transpose(2, 3).contiguous(),
    lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1],
    lambda x: F.pad(x, (0, 1, 0, 1))[:, :, :-1, :-1],
    lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (x.shape[2], x.shape[3])),
    lambda x: x + x.flip(2),
    torch.sigmoid,
]


def network(pick: random.Random, length: int, channels: int, depth: int = 0) -> nn.Sequential:
    """A chain over (N, channels, 6, 6) that keeps that shape. channels: a multiple of 4."""
    layers: list[nn.Module] = []
    while len(layers) < length:
        kind = pick.randrange(10)
        if kind <= 2:
            kernel, groups = pick.choice([1, 3]), pick.choice([1, 1, 2])
            bias = pick.random() < 0.5
            layers.append(nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=bias))
        elif kind <= 5:
            layers.append(nn.BatchNorm2d(channels))
        elif kind == 6 and depth < 2:
            chains = [network(pick, pick.randint(0, 3), channels, depth + 1) for _ in range(pick.randint(2, 3))]
            layers.append(Branches(chains, summed=True))
        elif kind == 7 and depth < 2:
            half = [network(pick, pick.randint(0, 2), channels // 2, depth + 1) for _ in range(2)]
            layers.append(Parts(*half) if channels >= 8 else nn.Identity())
        elif kind == 8 and depth < 2:
            chains = [network(pick, pick.randint(0, 2), channels, depth + 1) for _ in range(2)]
            layers.append(nn.Sequential(Branches(chains, summed=False), nn.Conv2d(2 * channels, channels, 1)))
        else:
            layers.append(Step(pick.choice(STEPS)))
    return nn.Sequential(*layers)


def built(seed: int) -> nn.Module:
    pick = random.Random(seed)
    torch.manual_seed(seed)
    body = network(pick, pick.randint(2, 7), 8)
    head = pick.choice(
        [
            [],
            [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 3)],
            [nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 3), nn.BatchNorm1d(3)],
        ]
    )
    module = randomised(nn.Sequential(body, *head))
    if pick.random() < 0.5:
        for inner in module.modules():
            if isinstance(inner, nn.BatchNorm1d | nn.BatchNorm2d):
                inner.weight.data.abs_()
    return module.double().eval()


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.sampled_from(["default", "all"]))
def test_no_random_network_is_folded_wrongly(seed: int, moves: str) -> None:
    module = built(seed)
    before = digest(module)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    folded, report, _ = fold_module(module, (x,), moves=moves)
    assert len(report.norms) == sum(isinstance(inner, nn.BatchNorm1d | nn.BatchNorm2d) for inner in module.modules())
    for rows in (2, 3):
        assert as_good(folded, module, (torch.randn(rows, 8, 6, 6, dtype=torch.float64),), bound=1e-10)
    assert digest(module) == before
    assert not storages(folded) & storages(module)


def test_the_comparison_notices_one_wrong_channel() -> None:
    module = built(2)
    folded, report, fold_map = fold_module(module, (torch.randn(2, 8, 6, 6, dtype=torch.float64),))
    assert report.counts["folded"]
    with torch.no_grad():
        folded.state_dict()[fold_map[0]["tensor"]][0] += 1e-6
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    assert not as_good(folded, module, (x,), bound=1e-10)


@pytest.mark.parametrize("moves", ["default", "all"])
def test_a_network_of_free_size_stays_free(moves: str) -> None:
    free = torch.export.Dim.AUTO
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.Upsample(scale_factor=2), nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 3),
    )  # fmt: skip
    module = randomised(module).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    folded, report, _ = fold_module(module, (x,), dynamic_shapes=({0: free, 2: free, 3: free},), moves=moves)
    assert report.counts["folded"] >= 2
    assert as_good(folded, module, (torch.randn(3, 3, 14, 10, dtype=torch.float64),), bound=1e-11)
