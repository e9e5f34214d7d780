"""Norms by name, and the ones written out here against torch's."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import pytest
import torch
from torch import nn

from bnfold.training.networks.batch_renorm import BatchRenorm
from bnfold.training.networks.handwritten import HandwrittenBatchNorm
from bnfold.training.networks.norms import FeatureNorm, FrozenBatchNorm, Norm, make_feature_norm, make_norm

SHAPES = ((16, 6), (5, 6, 4, 3), (2, 6, 1, 1), (3, 6, 7))
FAR = 100.0  # a mean that float32 statistics by E[x²] - mean² would not survive


def reference(shape: tuple[int, ...], **given: float) -> nn.Module:
    """torch's own norm for inputs of a shape."""
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    return kinds[len(shape)](shape[1], **given)


def batches(shape: tuple[int, ...], count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    scale = torch.rand((1, shape[1], *[1] * (len(shape) - 2)), generator=generator) + 0.1
    return [torch.randn(shape, generator=generator) * scale + scale for _ in range(count)]


def gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in units of float32's rounding of the largest value."""
    assert bool(torch.isfinite(found).all())
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max()) / torch.finfo(torch.float32).eps


def assert_trains_alike(ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        for channel in range(shape[1]):
            for norm in (ours, theirs):
                norm.weight[channel] = 0.5 * channel - 1
                norm.bias[channel] = 1 - channel
    for x in batches(shape):
        mine, torchs = (x.clone().requires_grad_() for _ in range(2))
        y, wanted = ours(mine), theirs(torchs)
        assert gap(y, wanted) < 16
        (y**3).sum().backward()
        (wanted**3).sum().backward()
        assert mine.grad is not None
        assert torchs.grad is not None
        largest = float((wanted.detach() ** 2).max()) * 3 / float(x.std())
        assert float((mine.grad - torchs.grad).abs().max()) < 1e-4 * largest
        for name in ("running_mean", "running_var"):
            assert gap(getattr(ours, name), getattr(theirs, name)) < 8, name
    assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked) == 4
    ours.eval()
    theirs.eval()
    assert gap(ours(x), theirs(x)) < 16


@pytest.mark.parametrize("shape", SHAPES)
def test_the_handwritten_norm_is_torchs_in_training_and_eval(shape: tuple[int, ...]) -> None:
    assert_trains_alike(HandwrittenBatchNorm(6, momentum=0.3), reference(shape, momentum=0.3), shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_handwritten_norm_takes_the_other_convention_of_momentum(shape: tuple[int, ...]) -> None:
    ours = HandwrittenBatchNorm(6, momentum=0.9, convention="keras")
    assert_trains_alike(ours, reference(shape, momentum=0.1), shape)


def test_the_conventions_of_momentum_are_not_the_same() -> None:
    x = batches((16, 6))[0] + 5
    means = []
    for convention in get_args(Literal["torch", "keras"]):
        norm = HandwrittenBatchNorm(6, momentum=0.9, convention=convention)
        norm(x)
        means.append(float(norm.running_mean.mean()))
    assert means[0] == pytest.approx(9 * means[1], rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_renorm_within_limits_of_one_and_zero_is_batch_norm(shape: tuple[int, ...]) -> None:
    assert_trains_alike(BatchRenorm(6, r_max=1.0, d_max=0.0), reference(shape), shape)


def test_batch_renorm_begins_as_batch_norm() -> None:
    assert gap(BatchRenorm(6)(batches((16, 6))[0]), nn.BatchNorm1d(6)(batches((16, 6))[0])) < 16


def test_batch_renorm_without_a_limit_normalises_by_the_running_statistics() -> None:
    norm = BatchRenorm(6, r_max=1e6, d_max=1e6, warm_up=0)
    with torch.no_grad():
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(2.0)
        norm.weight.copy_(torch.arange(6) - 2.5)
        norm.bias.copy_(torch.arange(6) * 0.5)
    wanted = copy.deepcopy(norm).eval()
    x = batches((16, 6))[0]
    assert gap(norm(x), wanted(x)) < 16


def test_batch_renorm_holds_its_correction_within_its_limits() -> None:
    norm = BatchRenorm(1, r_max=2.0, d_max=0.5, warm_up=0)
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)) * 10 + 50  # sigma_B / sigma = 10, d = 50
    y = norm(x).detach()
    assert float(y.mean()) == pytest.approx(0.5, abs=1e-4)
    assert float(norm(x - 100).detach().mean()) == pytest.approx(-0.5, abs=1e-4)
    assert float(y.var(unbiased=False)) == pytest.approx(4.0, rel=1e-3)


def test_batch_renorm_relaxes_its_limits_over_the_warm_up() -> None:
    norm = BatchRenorm(1, r_max=3.0, d_max=2.0, momentum=0.0, warm_up=4)
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)) * 10 + 50
    means = [float(norm(x).detach().mean()) for _ in range(6)]
    assert means == pytest.approx([0, 0.5, 1, 1.5, 2, 2], abs=1e-4)


def test_the_correction_is_a_constant_for_the_gradient() -> None:
    norm = BatchRenorm(3, r_max=1e6, d_max=1e6, warm_up=0)
    x = batches((16, 3))[0].requires_grad_()
    norm(x).sum().backward()
    # A batch's own mean takes a sum's gradient away; the running mean, a constant, would not.
    assert x.grad is not None
    assert float(x.grad.abs().max()) < 1e-5


def test_a_frozen_norm_has_nothing_to_learn_and_is_the_same_in_training() -> None:
    norm = FrozenBatchNorm(6)
    trained = nn.BatchNorm2d(6)
    for x in batches((5, 6, 4, 3)):
        trained(x)
    norm.load_state_dict({name: value for name, value in trained.state_dict().items() if "batches" not in name})
    assert not list(norm.parameters())
    before = copy.deepcopy(norm.state_dict())
    assert torch.equal(norm.train()(x), trained.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("make", [HandwrittenBatchNorm, BatchRenorm])
def test_a_state_dict_of_torchs_batch_norm_fits(make: type[nn.Module]) -> None:
    trained = nn.BatchNorm2d(6)
    trained(batches((5, 6, 4, 3))[0])
    norm = make(6)
    norm.load_state_dict(trained.state_dict(), strict=True)
    x = batches((5, 6, 4, 3))[1]
    assert gap(norm.eval()(x), trained.eval()(x)) < 16


@pytest.mark.parametrize("make", [HandwrittenBatchNorm, BatchRenorm])
def test_one_value_a_channel_is_refused_in_training_and_taken_in_eval(make: type[nn.Module]) -> None:
    norm = make(6)
    with pytest.raises(ValueError, match="2 or more values a channel"):
        norm(torch.zeros(1, 6, 1, 1))
    assert bool(torch.isfinite(norm.eval()(torch.zeros(1, 6, 1, 1))).all())


@pytest.mark.parametrize("make", [HandwrittenBatchNorm, BatchRenorm])
def test_statistics_survive_a_mean_far_from_zero_and_half_precision(make: type[nn.Module]) -> None:
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.01 + FAR
    norm = make(1, momentum=1.0)
    norm(x.float())
    assert float(norm.running_var) == pytest.approx(float(x.float().double().var()), rel=1e-3)
    half = make(1, momentum=1.0)
    half((x - FAR).bfloat16())
    assert half.running_var.dtype == torch.float32
    assert float(half.running_var) == pytest.approx(float((x - FAR).bfloat16().double().var()), rel=1e-5)


@pytest.mark.parametrize("name", get_args(Norm))
def test_every_norm_of_pictures_has_its_name(name: Norm) -> None:
    norm = make_norm(name, 12)
    assert norm(torch.rand(2, 12, 3, 3)).shape == (2, 12, 3, 3)


@pytest.mark.parametrize("name", get_args(FeatureNorm))
def test_every_norm_of_features_has_its_name(name: FeatureNorm) -> None:
    assert make_feature_norm(name, 12)(torch.rand(2, 12)).shape == (2, 12)


def test_layer_norm_normalises_a_sample_over_channels_and_space() -> None:
    y = make_norm("layer", 6)(torch.rand(3, 6, 4, 4) * 7 + 2).detach()
    assert float(y.mean((1, 2, 3)).abs().max()) < 1e-5
    assert float(y.var((1, 2, 3), unbiased=False).min()) == pytest.approx(1, abs=1e-3)


def test_instance_norm_normalises_each_channel_of_a_sample() -> None:
    y = make_norm("instance", 6)(torch.rand(3, 6, 4, 4) * 7 + 2).detach()
    assert float(y.mean((2, 3)).abs().max()) < 1e-5


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (2, 1), (3, 1), (8, 4), (12, 6), (16, 8), (24, 8), (14, 7)])
def test_group_norm_takes_up_to_eight_groups_of_two_or_more_channels(channels: int, groups: int) -> None:
    norm = make_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups
