"""Every kind of network is built, trains, and folds."""

from __future__ import annotations

import copy
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnfold
from bnfold.errors import DataError
from bnfold.training.fields import describe
from bnfold.training.networks import KINDS, build_network

DIGITS, CIFAR, LARGE = (1, 8, 8), (3, 32, 32), (3, 224, 224)
CLASSES = 5
# The smallest of each kind, by what a recipe would say; each fits pictures of 8x8.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {"widths": [8, 6]}),
    "plain_cnn": ("plain_cnn", {"widths": [4, 6, 8]}),
    "resnet 1": ("resnet", {"widths": [4, 8]}),
    "resnet 2": ("resnet", {"widths": [4, 8], "version": 2}),
    "resnet 1 bottleneck": ("resnet", {"widths": [2, 4], "blocks": [1, 2], "block": "bottleneck"}),
    "resnet 2 bottleneck": ("resnet", {"widths": [2, 4], "block": "bottleneck", "version": 2}),
    "vgg_bn": ("vgg_bn", {"widths": [4, 6], "convolutions": [1, 2]}),
    "mobilenet 1": ("mobilenet", {"widths": [4, 8], "expansion": 0}),
    "mobilenet 2": ("mobilenet", {"widths": [4, 8], "expansion": 2}),
    "densenet": ("densenet", {"layers": [2, 1], "growth": 4}),
    "repvgg": ("repvgg", {"widths": [4, 8]}),
    "airbench": ("airbench", {"widths": [6]}),
}
# Layers that never have a bias: the shortcuts of version 2, and the head of the speed run.
BARE = {"resnet 2": 1, "resnet 2 bottleneck": 2, "airbench": 1}
# Of these a norm stays; in the speed run one whose gamma is negative, as none of its own ever is.
KEEPS_SOME = ("resnet 2", "resnet 2 bottleneck", "densenet", "airbench")
CALIBRATED = ("batch", "frozen_batch", "batch_renorm", "handwritten")


def norms(kind: str) -> tuple[str, ...]:
    return get_args(get_type_hints(KINDS[kind].args)["norm"])


CASES = [(case, norm) for case, (kind, _) in SMALL.items() for norm in norms(kind)]


def built(case: str, shape: tuple[int, ...] = DIGITS, **more: Any) -> nn.Module:
    kind, args = SMALL[case]
    torch.manual_seed(0)
    return build_network(kind, shape, CLASSES, args | more)


def trained_looking(network: nn.Module) -> nn.Module:
    """In eval, with statistics, scales of both signs and shifts as a training leaves them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in network.modules():
            if getattr(norm, "running_var", None) is not None:
                norm.running_mean.normal_(0, 0.5, generator=generator)
                norm.running_var.uniform_(0.2, 3, generator=generator)
                norm.weight.uniform_(0.3, 1.5, generator=generator)
                norm.weight[0] *= -1
                norm.bias.normal_(0, 0.5, generator=generator)
    return network.eval()


def test_every_kind_is_tried_here() -> None:
    assert {kind for kind, _ in SMALL.values()} == set(KINDS)


@pytest.mark.parametrize(("case", "norm"), CASES)
@pytest.mark.parametrize("shape", [DIGITS, CIFAR], ids=["digits", "cifar"])
def test_trains_a_step_with_every_norm(case: str, norm: str, shape: tuple[int, ...]) -> None:
    network = built(case, shape, norm=norm, init="he").train()
    before = copy.deepcopy(network.state_dict())
    x, classes = torch.randn(4, *shape), torch.arange(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    logits = network(x)
    assert logits.shape == (4, CLASSES)
    F.cross_entropy(logits, classes).backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    optimizer.step()
    for part in (logits, network(x), network.eval()(x)):
        assert bool(torch.isfinite(part).all())
    assert not torch.equal(network.state_dict()["head.weight"], before["head.weight"])
    assert float(network(x).detach().std(0).max()) > 1e-4, "the same for every input"


@pytest.mark.parametrize("case", SMALL)
def test_takes_pictures_of_224_and_gives_finite_logits(case: str) -> None:
    stem = {"stem": "imagenet"} if "stem" in KINDS[SMALL[case][0]].args.__dataclass_fields__ else {}
    network = built(case, LARGE, **stem).train()
    assert bool(torch.isfinite(network(torch.rand(2, *LARGE))).all())


def assert_folds(case: str, norm: str, **more: Any) -> bnfold.FoldReport:
    """Every norm that eval fixes folds or is kept for a reason, and nothing but rounding comes between the two."""
    network = trained_looking(built(case, norm=norm, **more))
    x = torch.rand(4, *DIGITS, generator=torch.Generator().manual_seed(2))
    result = bnfold.fold(network, (x,))
    names = [name for name, module in network.named_modules() if getattr(module, "running_var", None) is not None]
    found = {row.name: row for row in result.report.norms}
    assert set(names) == set(found)
    assert all(row.outcome == "folded" or (row.outcome in ("kept", "reduced") and row.reason) for row in found.values())
    with torch.no_grad():
        truth = copy.deepcopy(network).double()(x.double())
        largest = float(truth.abs().max())
        assert float((result.model(x) - truth).abs().max()) < 64 * torch.finfo(torch.float32).eps * largest
    return result.report


@pytest.mark.parametrize("case", SMALL)
def test_folds_as_its_float64_self_says(case: str) -> None:
    counts = assert_folds(case, "batch").counts
    assert counts["folded"] > 0


@pytest.mark.parametrize("case", [case for case in SMALL if case not in KEEPS_SOME])
def test_where_every_norm_follows_a_layer_all_of_them_fold(case: str) -> None:
    report = assert_folds(case, "batch")
    assert report.counts["folded"] == len(report.norms)


@pytest.mark.parametrize("norm", norms("plain_cnn"))
def test_every_norm_of_pictures_that_eval_fixes_folds(norm: str) -> None:
    counts = assert_folds("plain_cnn", norm).counts
    assert counts["folded"] == (3 if norm in CALIBRATED else 0)


@pytest.mark.parametrize("norm", norms("mlp"))
def test_every_norm_of_features_that_eval_fixes_folds(norm: str) -> None:
    counts = assert_folds("mlp", norm).counts
    assert counts["folded"] == (2 if norm in CALIBRATED else 0)


def test_a_norm_behind_the_activation_folds_forward_unless_padding_or_a_pooling_is_in_the_way() -> None:
    assert assert_folds("mlp", "batch", order="activation_first").counts["folded"] == 2
    rows = assert_folds("plain_cnn", "batch", order="activation_first").norms
    assert [row.reason or row.outcome for row in rows] == ["PAD_SHIFT", "NEGATIVE_SCALE_THROUGH_MAXPOOL", "folded"]


@pytest.mark.parametrize("case", SMALL)
def test_a_bias_before_a_norm_folds_too(case: str) -> None:
    assert assert_folds(case, "batch", bias=True).counts["folded"] > 0


@pytest.mark.long
@pytest.mark.parametrize(("case", "norm"), CASES)
def test_folds_with_every_norm(case: str, norm: str) -> None:
    assert_folds(case, norm)


@pytest.mark.parametrize("case", [case for case in SMALL if "order" in KINDS[SMALL[case][0]].args.__dataclass_fields__])
def test_the_order_says_where_the_norm_stands_and_which_layer_has_a_bias(case: str) -> None:
    for order, between in (("norm_first", 1), ("activation_first", 2)):
        layers = [layer for layer in built(case, order=order).modules() if not list(layer.children())]
        at = [index for index, layer in enumerate(layers) if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert at
        assert all(isinstance(layers[index - between], nn.Linear | nn.Conv2d) for index in at)
        assert all((layers[index - between].bias is None) is (order == "norm_first") for index in at)


@pytest.mark.parametrize("case", SMALL)
def test_without_norms_the_layers_have_biases(case: str) -> None:
    layers = [layer for layer in built(case, norm="none").modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert sum(layer.bias is None for layer in layers) == BARE.get(case, 0)


@pytest.mark.parametrize("case", SMALL)
def test_the_bias_of_every_layer_before_a_norm_can_be_kept(case: str) -> None:
    layers = [layer for layer in built(case, bias=True).modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert sum(layer.bias is None for layer in layers) == BARE.get(case, 0)


@pytest.mark.parametrize(
    "case", ["mlp", "plain_cnn", "resnet 1", "resnet 1 bottleneck", "vgg_bn", "mobilenet 1", "mobilenet 2", "repvgg"]
)
def test_batch_norm_takes_such_a_bias_away(case: str) -> None:
    network = built(case, bias=True).double().train()
    F.cross_entropy(network(torch.rand(8, *DIGITS).double()), torch.arange(8) % CLASSES).backward()
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for name, layer in layers:
        largest = float(layer.bias.grad.abs().max())
        assert (largest > 1e-3) if name == "head" else (largest < 1e-12), name


@pytest.mark.parametrize("case", SMALL)
def test_he_initialisation_has_the_variance_of_its_formula(case: str) -> None:
    network = built(case, **({"growth": 32} if case == "densenet" else {"widths": [64, 64]}), norm="none", init="he")
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    large = [layer.weight.detach() for layer in layers if layer.weight.numel() >= 4096]
    assert large
    for weight in large:
        assert float(weight.var()) * weight[0].numel() == pytest.approx(2, rel=0.15)
    assert not any(bool(layer.bias.any()) for layer in layers if layer.bias is not None)


def test_zero_gamma_lets_each_block_begin_as_identity_and_learn() -> None:
    network = built("resnet 1", zero_gamma=True)
    gammas = [norm.weight for name, norm in network.named_modules() if name.endswith("bn2")]
    assert [float(gamma.detach().abs().max()) for gamma in gammas] == [0, 0]
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(network.stages[0](x), x)
    F.cross_entropy(network(torch.rand(4, *DIGITS)), torch.arange(4)).backward()
    assert all(gamma.grad is not None and bool(gamma.grad.any()) for gamma in gammas)


def test_zero_gamma_lets_a_bottleneck_begin_as_identity() -> None:
    network = built("resnet 1 bottleneck", zero_gamma=True)
    assert not any(bool(block.bn3.weight.any()) for block in network.stages)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(network.stages[2](x), x)


# What the networks of the paper have at 1,000 classes, as torchvision counts them.
@pytest.mark.parametrize(
    ("block", "blocks", "parameters"),
    [
        ("basic", [2, 2, 2, 2], 11_689_512),
        ("basic", [3, 4, 6, 3], 21_797_672),
        ("bottleneck", [3, 4, 6, 3], 25_557_032),
        ("bottleneck", [3, 4, 23, 3], 44_549_160),
    ],
)
def test_the_residual_networks_that_have_a_name_can_be_said(block: str, blocks: list[int], parameters: int) -> None:
    args = {"widths": [64, 128, 256, 512], "blocks": blocks, "block": block, "stem": "imagenet"}
    with torch.device("meta"):
        network = build_network("resnet", LARGE, 1000, args)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("version", [1, 2])
def test_the_middle_of_a_bottleneck_halves_the_size(version: int) -> None:
    network = built("resnet 1 bottleneck", version=version)
    strides = [[layer.stride[0] for layer in (block.conv1, block.conv2, block.conv3)] for block in network.stages]
    assert strides == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]


@pytest.mark.parametrize("case", ["resnet 1", "resnet 2 bottleneck", "mobilenet 1", "mobilenet 2", "repvgg"])
def test_stages_have_as_many_blocks_as_is_said_for_each_or_for_all(case: str) -> None:
    def widest(blocks: object) -> list[tuple[int, ...]]:
        return [tuple(weight.shape) for weight in built(case, blocks=blocks).state_dict().values() if weight.ndim == 4]

    assert widest([2, 2]) == widest([2]) == widest(2)
    assert len(widest(1)) < len(widest([1, 2])) < len(widest(2))
    assert widest([1, 2]) != widest([2, 1])


def test_zero_gamma_is_refused_where_a_relu_behind_it_would_pass_no_gradient() -> None:
    with pytest.raises(DataError, match="zero_gamma needs version 1"):
        built("resnet 2", zero_gamma=True)


def test_a_norm_without_a_gamma_that_learns_cannot_begin_at_zero() -> None:
    with pytest.raises(DataError, match="zero_gamma needs a norm whose gamma learns, norm 'frozen_batch' has none"):
        built("resnet 1", zero_gamma=True, norm="frozen_batch")


@pytest.mark.parametrize(
    ("case", "more", "message"),
    [
        ("vgg_bn", {"convolutions": [1, 2, 3]}, "3 convolutions stand beside 2 widths"),
        ("resnet 1", {"blocks": [1, 2, 3]}, "3 blocks stand beside 2 widths, expected as many, or one"),
        ("repvgg", {"blocks": [0, 1]}, "expected an integer or a list of 1 to 64 integers from 1 to 32"),
        ("mobilenet 1", {"blocks": True}, "expected an integer or a list of 1 to 64 integers from 1 to 32"),
        ("resnet 1", {"block": "wide"}, "expected one of basic, bottleneck"),
        ("vgg_bn", {"widths": [4] * 4, "convolutions": [1]}, "too small"),
        ("airbench", {"widths": [4] * 3}, "too small"),
        ("resnet 1", {"widths": [4] * 64, "blocks": 32}, "2048 blocks, expected up to 640"),
        ("mobilenet 1", {"widths": [4] * 64, "blocks": 32}, "2048 blocks"),
        ("repvgg", {"widths": [4] * 64, "blocks": 32}, "2048 blocks"),
        ("vgg_bn", {"widths": [4] * 64, "convolutions": [32]}, "2048 blocks"),
        ("densenet", {"layers": [64] * 64}, "4096 blocks"),
        ("plain_cnn", {"norm": "instance", "order": "activation_first"}, "the same for every input"),
        ("resnet 1", {"widths": [4] * 4, "norm": "instance"}, "more than 1 spatial element"),
    ],
)
def test_keys_that_do_not_fit_together_or_the_inputs_are_refused(case: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        built(case, **more)


def test_the_speed_run_begins_as_identity_with_gammas_that_stay_one_and_scaled_logits() -> None:
    network = built("airbench", logit_scale=0.5)
    first = network.features[2]
    x = torch.rand(2, 8, 5, 5)
    assert torch.equal(first(x)[:, :6], x[:, :6])
    norms = [norm for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert all(not norm.weight.requires_grad and norm.bias.requires_grad for norm in norms)
    order = [type(layer).__name__ for layer in network.features]
    stage = ["Conv2d", "MaxPool2d", "BatchNorm2d", "GELU", "Conv2d", "BatchNorm2d", "GELU"]
    assert order == ["Conv2d", "GELU", *stage]
    network.eval()
    x = torch.rand(2, *DIGITS)
    assert torch.equal(network(x), 0.5 * network.head(network.features(x).amax((2, 3))))


def test_the_branches_of_repvgg_become_one_convolution() -> None:
    network = trained_looking(built("repvgg"))
    folded = bnfold.fold(network, (torch.rand(2, *DIGITS),)).model
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == 6
    weights = [value for value in folded.state_dict().values() if value.ndim == 4]
    assert len(weights) == 3


def test_what_does_not_fit_the_inputs_is_one_sentence_before_anything_is_trained() -> None:
    with pytest.raises(DataError, match=r"'plain_cnn' cannot be built.* for inputs \[1, 1, 1\]") as raised:
        built("plain_cnn", (1, 1, 1))
    assert "\n" not in str(raised.value)


def drawn(layers: list[nn.Module]) -> list[torch.Tensor]:
    return [parameter for layer in layers for parameter in layer.parameters()]


def test_the_weights_of_a_seed_stay_what_they_were() -> None:
    torch.manual_seed(0)
    wanted = {
        "mlp": drawn([nn.Linear(64, 8, bias=False), nn.Linear(8, 6, bias=False), nn.Linear(6, CLASSES)]),
    }
    torch.manual_seed(0)
    sizes = ((1, 4), (4, 6), (6, 8))
    wanted["plain_cnn"] = drawn([*(nn.Conv2d(a, b, 3, bias=False) for a, b in sizes), nn.Linear(8, CLASSES)])
    torch.manual_seed(0)
    sizes = ((1, 4), (4, 4), (4, 4), (4, 8), (8, 8))
    convolutions = [nn.Conv2d(a, b, 3, bias=False) for a, b in sizes]
    wanted["resnet 1"] = drawn([*convolutions, nn.Conv2d(4, 8, 1, bias=False), nn.Linear(8, CLASSES)])
    for case, weights in wanted.items():
        network = built(case)
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        assert all(torch.equal(a, b) for a, b in zip(drawn(layers), weights, strict=True)), case


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_says_what_it_means_and_the_common_ones_are_there(kind: str) -> None:
    keys = {key.name: key for key in describe(KINDS[kind].args)}
    assert all(key.meaning for key in keys.values())
    assert (keys["norm"].default, keys["init"].default) == ("batch", "default")
