"""Running statistics over a data set, against a float64 oracle that knows nothing of batches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from bnfold.errors import DataError
from bnfold.training.statistics import Moments, measure, recalibrate


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(4 * 4 * 4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.startswith(("1.", "4.", "8.")):
                value.copy_(torch.rand_like(value) + 0.5)
    return module


def data(count: int = 37, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def unequal(x: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    return list(x.split(list(sizes)))


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, rtol: float, atol: float = 0.0) -> None:
    assert found.shape == expected.shape
    assert found.isfinite().all()
    assert ((found.double() - expected.double()).abs() <= atol + rtol * expected.double().abs()).all()


def of_channels(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = x.detach().double().transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1)


def layer_by_layer(module: nn.Sequential, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All data at once, in float64: each norm is given the population statistics of its input, then the next."""
    x, found = x.double(), []
    for layer in module.double().eval():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            mean, variance = of_channels(x)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
            found.append((mean, variance))
        x = layer(x)
    return found


def batch_by_batch(module: nn.Sequential, batches: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each norm of a network in training mode sees, all batches of it joined before anything is computed."""
    seen: dict[int, list[torch.Tensor]] = {}
    module = module.double().eval()
    for batch in batches:
        x = batch.double()
        for at, layer in enumerate(module):
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                seen.setdefault(at, []).append(x.transpose(0, 1).flatten(1))
                layer.train()
            x = layer(x)
    joined = [torch.cat(parts, 1).T for parts in seen.values()]
    return [of_channels(values) for values in joined]


@pytest.mark.parametrize("sizes", [(37,), (16, 16, 5), (2, 30, 5)])
def test_one_pass_gives_the_statistics_of_what_norms_see_in_training(sizes: Sequence[int]) -> None:
    module = network()
    batches = unequal(data(), sizes)
    found = recalibrate(module, batches)
    expected = batch_by_batch(network(), batches)
    for (name, moments), (mean, variance) in zip(found.items(), expected, strict=True):
        assert_close(moments.mean, mean, rtol=2e-5, atol=2e-5)
        assert_close(moments.variance(), variance, rtol=2e-5)
        norm = module.get_submodule(name)
        assert torch.equal(norm.running_mean, moments.mean.float())
        assert torch.equal(norm.running_var, moments.variance().float())


@pytest.mark.parametrize("sizes", [(37,), (16, 16, 5), (1, 35, 1)])
def test_exact_statistics_are_those_of_all_data_whatever_the_batches(sizes: Sequence[int]) -> None:
    found = recalibrate(network(), unequal(data(), sizes), "exact")
    for moments, (mean, variance) in zip(found.values(), layer_by_layer(network(), data()), strict=True):
        assert_close(moments.mean, mean, rtol=2e-5, atol=2e-5)
        assert_close(moments.variance(), variance, rtol=2e-5)


def test_the_two_meanings_differ_behind_the_first_norm() -> None:
    batches = unequal(data(), (4,) * 9 + (1,))[:9]
    by_batch, exact = recalibrate(network(), batches), recalibrate(network(), batches, "exact")
    (first, *rest), (first_exact, *rest_exact) = by_batch.values(), exact.values()
    assert torch.equal(first.mean, first_exact.mean)
    assert not torch.allclose(rest[-1].variance(), rest_exact[-1].variance(), rtol=1e-3)


def test_a_variance_that_is_small_beside_the_mean_stays_positive_where_the_naive_formula_goes_negative() -> None:
    torch.manual_seed(0)
    x = 100 + 0.01 * torch.randn(4096, 16)
    naive = x.square().mean(0) - x.mean(0).square()
    assert float(naive.min()) < 0
    moments = Moments()
    for part in x.split([1, 1000, 3095]):
        moments.add(part)
    assert_close(moments.variance(), x.double().var(0), rtol=1e-9)
    assert torch.allclose(moments.variance(), torch.full((16,), 1e-4, dtype=torch.float64), rtol=0.1)


def test_large_activations_are_added_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, blocks = Moments(), Moments()
    whole.add(data())
    monkeypatch.setattr("bnfold.training.statistics._BLOCK", 300)
    blocks.add(data())
    assert whole.count == blocks.count == 37 * 64
    assert_close(blocks.variance(), whole.variance(), rtol=1e-12, atol=0)


class Shared(nn.Module):
    """One norm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.twin = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twin(torch.cat([self.norm(x), torch.ones(2, 3)]) * 2)


def test_a_norm_that_is_called_twice_counts_both() -> None:
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).double()
    module = Shared().double()
    found = recalibrate(module, [x[:4], x[4:]])
    assert list(found) == ["norm"]
    seen = []
    for part in (x[:4], x[4:]):
        normal = (part - part.mean(0)) / (part.var(0, unbiased=False) + 1e-5).sqrt()
        seen += [part, torch.cat([normal, torch.ones(2, 3)]) * 2]
    mean, variance = of_channels(torch.cat(seen))
    assert found["norm"].count == 10 + 14
    assert_close(found["norm"].mean, mean, rtol=1e-12)
    assert_close(module.norm.running_var, variance, rtol=1e-12)


def test_exact_statistics_of_a_norm_that_is_called_twice_are_refused() -> None:
    with pytest.raises(DataError, match="'norm' is called 2 times"):
        recalibrate(Shared(), [torch.randn(4, 3)], "exact")


class HandWritten(nn.Module):
    """A norm that only its buffers tell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 2.0))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.running_mean) / torch.sqrt(self.running_var + 1e-3) * self.gamma


@pytest.mark.parametrize("norm", [HandWritten(4), nn.SyncBatchNorm(4), nn.BatchNorm1d(4, momentum=None, affine=False)])
@pytest.mark.parametrize("meaning", ["batch", "exact"])
def test_any_norm_with_running_statistics_is_recalibrated(norm: nn.Module, meaning: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 7)
    module = nn.Sequential(nn.Linear(7, 4), norm, nn.Linear(4, 2))
    recalibrate(module, [x], meaning)
    mean, variance = of_channels(module[0](x))
    assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
    assert_close(norm.running_var, variance, rtol=1e-5)


def test_instance_norm_and_norms_without_statistics_are_left_alone() -> None:
    module = nn.Sequential(
        nn.InstanceNorm2d(2, track_running_stats=True), nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2)
    )
    assert recalibrate(module, [data()]) == {}
    assert torch.equal(module[0].running_var, torch.ones(2))


def test_measuring_leaves_the_module_as_it_was() -> None:
    module = network()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    measure(module, [data()])
    measure(module, [data()], "exact")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [part.training for part in (module, module[4], module[1])] == [True, True, False]
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_eval_statistics_are_of_what_a_network_in_use_sees() -> None:
    module = network()
    recalibrate(module, [data()], "exact")
    again = measure(module, unequal(data(), (30, 7)), "eval")
    for name, moments in again.items():
        assert_close(moments.mean.float(), module.get_submodule(name).running_mean, rtol=1e-4, atol=1e-5)
        assert_close(moments.variance().float(), module.get_submodule(name).running_var, rtol=1e-5)


def test_a_batch_of_one_is_named_where_it_has_no_variance_and_taken_where_it_needs_none() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = module[1].running_var.clone()
    with pytest.raises(DataError, match="norm '1' one value a channel"):
        recalibrate(module, [torch.randn(4, 3), torch.randn(1, 3)])
    assert torch.equal(module[1].running_var, before)
    recalibrate(module, [torch.randn(4, 3), torch.randn(1, 3)], "exact")
    with pytest.raises(DataError, match="one value a channel in all data"):
        recalibrate(module, [torch.randn(1, 3)], "exact")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_values_that_give_no_finite_statistics_change_nothing(bad: float) -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = data()
    x[3, 0, 0, 0] = bad
    with pytest.raises(DataError, match="norm '1' sees values whose mean or variance is not a finite"):
        recalibrate(module, [x])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_norm_that_is_not_called_keeps_its_statistics() -> None:
    module = nn.Sequential(nn.Linear(3, 2))
    module.spare = nn.BatchNorm1d(2)
    module.forward = lambda x: module[0](x)  # type: ignore[method-assign]
    assert recalibrate(module, [torch.randn(4, 3)])["spare"].count == 0
    assert torch.equal(module.spare.running_var, torch.ones(2))


def test_a_norm_that_is_not_called_with_its_channels_second_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Unflatten(0, (1, -1)), HandWritten(2))
    with pytest.raises(DataError, match=r"norm '2' is called with \[1, 4, 2\]"):
        recalibrate(module, [torch.randn(4, 3)])
