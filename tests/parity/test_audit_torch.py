"""Audits of what PyTorch folds: torch.nn.utils.fusion, torch.fx, the ONNX exporter, onnxscript."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnxscript import optimizer, rewriter
from parity_networks import Builder, Layer, add_layer
from torch import nn
from torch.nn.utils.fusion import (  # noqa: TID251 - the peer that is audited
    fuse_conv_bn_eval,
    fuse_conv_bn_weights,
    fuse_linear_bn_eval,
)

import bnfold
from bnfold.export import export_model
from bnfold.parity.audit.comparing import compare_graphs

with warnings.catch_warnings():  # it uses what torch itself calls deprecated
    warnings.simplefilter("ignore")
    from torch.fx.experimental.optimization import fuse

EXAMPLE = (torch.zeros(2, 3, 6, 6),)


def with_statistics(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode; its norms get random statistics and gamma of both signs."""
    torch.manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean = 2 * torch.randn_like(norm.weight).detach()
            norm.running_var = torch.exp(torch.randn_like(norm.weight)).detach()
    return module.eval()


class Network(nn.Module):
    def __init__(self, width: int = 16, groups: int = 4, kernel: int = 3, bias: bool = True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, kernel, padding=1, bias=bias), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, groups=groups, bias=False), nn.BatchNorm2d(width, eps=1e-3)
        self.fc, self.bn3 = nn.Linear(width, 5), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.fc(x.mean((2, 3))))


def fused(module: Network) -> Network:
    """By torch.nn.utils.fusion, pair by pair."""
    folded = copy.deepcopy(module)
    for at in (1, 2):
        setattr(folded, f"conv{at}", fuse_conv_bn_eval(getattr(folded, f"conv{at}"), getattr(folded, f"bn{at}")))
        setattr(folded, f"bn{at}", nn.Identity())
    folded.fc, folded.bn3 = fuse_linear_bn_eval(folded.fc, folded.bn3), nn.Identity()
    return folded


def default_export(module: nn.Module) -> onnx.ModelProto:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return torch.onnx.export(module, EXAMPLE, dynamo=True, verbose=False).model_proto


def unfolded_export(module: nn.Module) -> onnx.ModelProto:
    return export_model(module, EXAMPLE)


FOLDS = {
    "torch.nn.utils.fusion": fused,
    "torch.fx": fuse,
    "torch.onnx.export": default_export,
    "onnxscript": lambda module: rewriter.rewrite(optimizer.optimize(unfolded_export(module))),
}


@pytest.mark.parametrize("tool", FOLDS)
def test_folds_of_pytorch_are_consistent_with_rounding(tool: str):
    module = with_statistics(Network())
    report = bnfold.audit(FOLDS[tool](module), module, example_inputs=EXAMPLE)
    assert report.exit_code == 0, report.to_table()
    assert sorted(report.norms["taken"]) == ["bn1", "bn2", "bn3"]
    changed = [tensor for tensor in report.tensors if tensor.verdict != "unchanged"]
    assert len(changed) == 6
    assert any(tensor.verdict == "consistent with rounding" for tensor in changed)
    assert 0.5 < report.worst_ulp("weight") < 3
    assert all(tensor.share < 0.6 for tensor in changed)


def test_fold_by_this_package_is_the_nearest():
    module = with_statistics(Network())
    report = bnfold.audit(bnfold.fold(module, EXAMPLE).model, module, example_inputs=EXAMPLE)
    assert report.exit_code == 0
    assert {tensor.verdict for tensor in report.tensors} == {"nearest"}


class Twice(nn.Module):
    """A convolution that is called before a norm and again behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.relu(self.bn(self.conv(x))))


def test_convolution_that_fx_folded_although_it_is_called_twice_is_named():
    module = with_statistics(Twice())
    report = bnfold.audit(fuse(module), module, example_inputs=EXAMPLE)
    assert report.exit_code == 1
    wrong = {tensor.tensor: tensor for tensor in report.wrong}
    assert set(wrong) == {"conv.weight", "conv.bias"}
    assert all("has several readers and was folded with bn" in tensor.cause for tensor in wrong.values())
    assert report.tier("T3").status == "fails"


def test_half_precision_that_overflowed_in_the_fold_is_named():
    """The variance plus eps rounds to 0 in half precision, its root divides, and nobody says a word."""
    module = with_statistics(Network())
    module.bn1.eps = 1e-8
    module.bn1.running_var.zero_()
    half = module.half()
    folded = fused(half)
    assert not torch.isfinite(folded.conv1.weight).all()
    report = bnfold.audit(folded, half, example_inputs=(EXAMPLE[0].half(),))
    assert report.exit_code == 1
    assert {tensor.tensor for tensor in report.wrong} >= {"conv1.weight"}
    assert all("not finite" in tensor.cause for tensor in report.wrong)


def test_folded_onnx_against_a_module_and_its_weights_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )
    from safetensors.torch import save_file

    module = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    onnx.save(default_export(module), tmp_path / "folded.onnx")
    monkeypatch.chdir(tmp_path)
    report = bnfold.audit("folded.onnx", "mine:make", weights=tmp_path / "weights.safetensors", input_shape=(3, 6, 6))
    assert report.exit_code == 0, report.to_table()
    assert report.norms["taken"] == ("1",)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Layer, ...]:
    """Convolutions in a row, a norm behind each."""
    widths = [draw(st.sampled_from([2, 4, 6])) for _ in range(draw(st.integers(2, 4)))]
    return tuple(
        Layer(
            inputs=before, outputs=after, kernel=draw(st.integers(1, 3)), bias=draw(st.booleans()),
            groups=draw(st.sampled_from([1, 2])), padding=draw(st.integers(0, 1)),
            eps=draw(st.sampled_from([1e-5, 1e-3])), variance=draw(st.sampled_from([1.0, 1e-4, 1e4])),
        )
        for before, after in itertools.pairwise([2, *widths])
    )  # fmt: skip


def chain_of(layers: tuple[Layer, ...], seed: int) -> onnx.ModelProto:
    build = Builder(np.random.default_rng(seed))
    x = "input"
    for at, layer in enumerate(layers):
        x = build.node("Relu", [add_layer(build, x, layer, f"layer{at}")])
    return build.model((None, 2, 12, 12), x, 4)


def folded_by_torch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Each pair by torch.nn.utils.fusion, in float32, under the original names."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    for norm in [node for node in copy.graph.node if node.op_type == "BatchNormalization"]:
        conv = next(node for node in copy.graph.node if norm.input[0] in node.output)
        numbers = [torch.tensor(tensors[name]) for name in (*conv.input[1:], *norm.input[1:])]
        weight, *bias = numbers[: len(conv.input) - 1]
        gamma, beta, mean, variance = numbers[-4:]
        eps = round(norm.attribute[0].f, 8)
        new = fuse_conv_bn_weights(weight, bias[0] if bias else None, mean, variance, eps, gamma, beta)
        name = conv.input[1]
        names = [name, conv.input[2] if bias else f"{name}.new_bias"]
        tensors |= {name: part.detach().numpy() for name, part in zip(names, new, strict=True)}
        del conv.input[1:]
        conv.input.extend(names)
        conv.output[0] = norm.output[0]
        copy.graph.node.remove(norm)
    used = {name for node in copy.graph.node for name in node.input}
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(numpy_helper.from_array(tensors[name], name) for name in tensors if name in used)
    return copy


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(chain=chains(), seed=st.integers(0, 10_000), at=st.integers(0, 3), role=st.sampled_from([1, 2]))
def test_random_networks_folded_by_torch_are_never_wrong_and_with_a_broken_channel_always(
    chain: tuple[Layer, ...], seed: int, at: int, role: int
):
    original = chain_of(chain, seed)
    folded = folded_by_torch(original)
    found = compare_graphs(ir.from_proto(original), ir.from_proto(folded))
    assert found.is_whole, found.gaps
    assert not found.wrong, [tensor.sentence() for tensor in found.wrong]
    assert len(found.changed) == 2 * len(chain)
    convs = [node for node in folded.graph.node if node.op_type == "Conv"]
    tensor, channel = convs[at % len(convs)].input[role], seed % 2
    for stored in folded.graph.initializer:
        if stored.name == tensor:
            array = numpy_helper.to_array(stored).copy()
            array[channel] += np.float32(1e-3) * np.abs(array).max()
            stored.CopyFrom(numpy_helper.from_array(array, tensor))
    named = compare_graphs(ir.from_proto(original), ir.from_proto(folded)).wrong
    assert [(found.tensor, found.channels) for found in named] == [(tensor, (channel,))]
