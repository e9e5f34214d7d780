from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch_networks import as_good, digest, storages

from bnfold.folding.torch_graph import fold_module

# What these run is measured by the tests that name it; to measure it here too would take more than twice the time.
pytestmark = pytest.mark.no_cover

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class Layer:
    rank: int  # spatial axes; 0 is a dense layer
    transposed: bool
    inputs: int
    outputs: int
    groups: int
    kernel: int
    stride: int
    dilation: int
    padding: int
    bias: bool
    affine: bool
    eps: float
    variance: float
    gamma: float
    dtype: torch.dtype
    seed: int

    def build(self) -> nn.Module:
        torch.manual_seed(self.seed)
        inputs, outputs = self.inputs * self.groups, self.outputs * self.groups
        if self.rank == 0:
            linear: nn.Module = nn.Linear(inputs, outputs, bias=self.bias)
        else:
            kind = (TRANSPOSED if self.transposed else CONVS)[self.rank]
            linear = kind(
                inputs, outputs, self.kernel, self.stride, self.padding,
                groups=self.groups, bias=self.bias, dilation=self.dilation,
            )  # fmt: skip
        norm = NORMS[self.rank](outputs, affine=self.affine, eps=self.eps)
        with torch.no_grad():
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5).mul_(self.variance)
            if self.affine:
                norm.weight.normal_()
                norm.bias.normal_()
                norm.weight[0] = self.gamma
        return nn.Sequential(linear, norm).to(self.dtype).eval()

    def inputs_of(self, batch: int) -> tuple[torch.Tensor]:
        size = [self.kernel * self.dilation + 2] * self.rank
        return (torch.randn(batch, self.inputs * self.groups, *size).to(self.dtype),)


layers = st.builds(
    Layer,
    rank=st.integers(0, 3),
    transposed=st.booleans(),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
    affine=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3, 0.0, 0.3]),
    variance=st.sampled_from([1.0, 1e-3, 1e3]),
    gamma=st.sampled_from([0.0, -1.0, 1e-4, -30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    seed=st.integers(0, 10_000),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(layers)
def test_any_linear_absorbs_the_norm_behind_it(layer: Layer) -> None:
    module = layer.build()
    before = digest(module)
    folded, report, _ = fold_module(module, layer.inputs_of(1))
    assert [row.outcome for row in report.norms] == ["folded"]
    assert isinstance(folded[1], nn.Identity)
    assert digest(module) == before
    assert not storages(folded) & storages(module)
    # Half precision accumulates in different orders: only its weights are compared, elsewhere.
    if layer.dtype != torch.float16:
        assert as_good(folded, module, layer.inputs_of(3))
