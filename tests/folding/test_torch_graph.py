from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnfold.folding import algebra
from bnfold.folding.facts import ELEMENTWISE, Linear, Norm, Opaque
from bnfold.folding.torch_graph import read_program
from bnfold.folding.torch_tensors import to_numpy, to_torch
from bnfold.folding.torch_trace import plainly_written, trace_module


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Steps(nn.Module):
    """Arithmetic between a convolution's output (N, 4, 6, 4) and constants c (4,), d (), e (1, 4, 1, 1)."""

    def __init__(self, step: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 1)
        self.c = nn.Parameter(torch.rand(4) + 0.5)
        self.d = nn.Parameter(torch.tensor(1.75))
        self.e = nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5)
        self.register_buffer("wide", torch.rand(4, 1, 1, dtype=torch.float64))
        self.register_buffer("count", torch.arange(1, 5).reshape(4, 1, 1))
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(self, self.conv(x))


X = torch.randn(2, 3, 6, 4)


def norms(step: Callable[..., torch.Tensor], **given: bool) -> list[Norm]:
    return list(read_program(trace_module(Steps(step).eval(), (X,), **given)).norms)


def value(norm: Norm, y: np.ndarray) -> np.ndarray:
    """What a norm's facts say that it makes of y, in float64."""
    scale, shift = (algebra.evaluate(part).hi for part in (norm.scale, norm.shift))
    if norm.axis is not None:
        broadcast = [-1 if axis == norm.axis else 1 for axis in range(y.ndim)]
        scale, shift = (part if part.ndim == 0 else part.reshape(broadcast) for part in (scale, shift))
    return y * scale + shift


def in_place(m: Steps, y: torch.Tensor) -> torch.Tensor:
    """A constant that is written to before a view of it is read."""
    s = m.e.clone()
    v = s.view(-1)
    s.sqrt_()
    return y * v.view(4, 1, 1)


def test_takes_no_constant_that_a_program_writes_to_in_place_where_that_is_left() -> None:
    program = torch.export.export(Steps(in_place).eval(), (X,))
    assert read_program(program).norms == ()
    assert len(read_program(plainly_written(program)).norms) == 1


@pytest.mark.parametrize(
    ("step", "axis"),
    [
        (lambda m, y: y + m.e, 1),
        (lambda m, y: m.e + y, 1),
        (lambda m, y: y - m.e, 1),
        (lambda m, y: y * m.e, 1),
        (lambda m, y: m.e * y, 1),
        (lambda m, y: y / m.e, 1),
        (lambda m, y: y + m.c, 3),
        (lambda m, y: y * m.c[:, None, None], 1),
        (lambda m, y: y * m.d, None),
        (lambda _, y: y - 0.3, None),
        (lambda m, y: torch.add(y, m.e, alpha=2.5), 1),
        (lambda m, y: torch.sub(y, m.e, alpha=-2), 1),
        (lambda m, y: y * m.e.rsqrt(), 1),
        (lambda m, y: y * (m.e + 1e-3).sqrt().reciprocal(), 1),
        (lambda m, y: y * (-m.e) ** 2, 1),
        (lambda m, y: y / m.e**0.5, 1),
        (lambda m, y: y * m.e**-0.5, 1),
        (lambda m, y: y * (1.0 - m.e), 1),
        (lambda m, y: y * m.c.view(2, 2).flatten().unsqueeze(1).unsqueeze(2), 1),
        (lambda m, y: y * m.e.transpose(1, 3).permute(0, 3, 1, 2), 1),
        (lambda m, y: y * m.e.expand(1, 4, 6, 4), 1),
        (lambda m, y: y * m.e.to(torch.float32).detach().clone().contiguous(), 1),
        (lambda _, y: y * torch.tensor([1.0, 2.0, 3.0, 4.5]).reshape(-1, 1, 1), 1),
        (in_place, 1),
    ],
)
def test_states_a_step_by_a_constant_as_what_it_computes(step: Callable[..., torch.Tensor], axis: int | None) -> None:
    found = norms(step)
    assert [(norm.kind, norm.axis) for norm in found] == [(ELEMENTWISE, axis)]
    module = Steps(step).double()
    y = torch.randn(3, 4, 6, 4, dtype=torch.float64)
    wanted = step(module, y).detach().numpy()
    assert np.abs(value(found[0], y.numpy()) - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "step",
    [
        lambda _, y: y * torch.ones(2, 1, 1, 1, 1),
        lambda m, y: y[:, :1] * m.e,
        lambda m, y: y * (m.e * m.c),
        lambda m, y: y * m.wide,
        lambda m, y: y.long() * m.e.long(),
        lambda m, y: y * m.count,
        lambda m, y: m.e / y,
        lambda m, y: m.e - y,
        lambda m, y: torch.div(y, m.e, rounding_mode="floor"),
        lambda _, y: y * y,
        lambda m, y: y * m.e.exp(),
        lambda m, y: y * m.e.expand(2, 4, 1, 1)[:1].flip(1),
        lambda _, y: y * y.shape[0],
        lambda m, y: torch.addcmul(m.e, y, m.e),
        lambda m, y: y * m.e.expand(1, 4, 6, 4).permute(0, 1, 2, 3),
        lambda m, y: (s := m.e + 1.0, s.view(-1)[:2].fill_(3.0), y * s)[-1],
    ],
    ids=[
        "more axes", "broadcast up", "over two axes", "promoted", "integers",
        "integer constant", "constant divided", "constant reduced", "rounded", "by itself", "unknown function",
        "reordered", "by a size", "unknown operator", "expanded and turned",
        "written to through a view",
    ],
)  # fmt: skip
def test_takes_for_a_norm_nothing_that_is_not_proven_to_be_one(step: Callable[..., torch.Tensor]) -> None:
    assert norms(step) == []


def test_a_constant_over_the_rows_of_a_fixed_batch_is_over_axis_0() -> None:
    found = norms(lambda _, y: y * torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1), free_batch=False)
    assert [norm.axis for norm in found] == [0]


def linear_of(module: nn.Module, *inputs: torch.Tensor) -> Linear:
    found = [node for node in read_program(trace_module(module.eval(), inputs)).nodes if isinstance(node, Linear)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("module", "shape", "kind", "out_first", "groups", "channels", "axis"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 5), "Conv", True, 2, 6, 1),
        (nn.Conv2d(4, 6, 3), (4, 5, 5), "Conv", True, 1, 6, 0),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5), "ConvTranspose", False, 2, 6, 1),
        (nn.ConvTranspose3d(2, 3, 1), (2, 2, 2, 2, 2), "ConvTranspose", False, 1, 3, 1),
        (nn.Linear(4, 6), (2, 4), "Gemm", True, 1, 6, 1),
        (nn.Linear(4, 6), (2, 3, 5, 4), "MatMul", True, 1, 6, 3),
    ],
)
def test_states_a_linear_by_its_layout(
    module: nn.Module, shape: tuple[int, ...], kind: str, out_first: bool, groups: int, channels: int, axis: int
) -> None:
    linear = linear_of(module, torch.randn(shape))
    found = (linear.kind, linear.out_first, linear.groups, linear.channels, linear.axis)
    assert found == (kind, out_first, groups, channels, axis)
    assert np.array_equal(linear.weight.load(), module.weight.detach().numpy())


class Product(nn.Module):
    def __init__(self, product: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 6))
        self.b = nn.Parameter(torch.randn(6))
        self.narrow = nn.Parameter(torch.randn(4, 6).bfloat16())
        self.product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(self, x)


@pytest.mark.parametrize(
    ("product", "kind", "out_first"),
    [
        (lambda m, x: x @ m.w, "MatMul", False),
        (lambda m, x: torch.mm(x, m.w), "MatMul", False),
        (lambda m, x: torch.addmm(m.b, x, m.w, alpha=2, beta=0.5), "Gemm", False),
        (lambda m, x: torch.addmm(m.b, x, m.w), "Gemm", False),
        (lambda m, x: F.linear(x, m.w.t()), "Opaque", None),
        (lambda m, x: F.linear(x.repeat(1, 2)[:, :6], m.w), "Gemm", True),
        (lambda m, x: x.repeat(1, 2)[:, :6] @ m.w.T, "MatMul", True),
        (lambda m, x: x.repeat(1, 2)[:, :6] @ m.w.transpose(0, -1), "MatMul", True),
        (lambda m, x: x @ (m.w * 2), "Opaque", None),
        (lambda m, x: x @ m.narrow.float(), "Opaque", None),
        (lambda m, x: F.linear(x, m.narrow.t().float(), m.b), "Opaque", None),
        (lambda m, x: x @ m.w.clone().contiguous(), "MatMul", False),
        (lambda m, x: torch.addmm(m.b * 2, x, m.w), "Opaque", None),
    ],
)
def test_states_a_product_by_a_constant(
    product: Callable[..., torch.Tensor], kind: str, out_first: bool | None
) -> None:
    module = Product(product)
    nodes = read_program(trace_module(module, (torch.randn(3, 4),))).nodes
    found = nodes[-1]
    if kind == "Opaque":
        assert isinstance(found, Opaque)
        assert found.why is not None
        assert found.why.code == "COMPUTED_WEIGHT"
        return
    assert isinstance(found, Linear)
    assert (found.kind, found.out_first) == (kind, out_first)
    if kind == "Gemm" and not out_first:
        assert found.bias is not None
        assert (found.alpha, found.beta) in ((2.0, 0.5), (1.0, 1.0))


def test_a_product_of_activations_is_opaque_without_a_reason() -> None:
    nodes = read_program(trace_module(Product(lambda m, x: (y := x @ m.w) @ y.t()), (torch.randn(3, 4),))).nodes
    assert isinstance(nodes[-1], Opaque)
    assert nodes[-1].why is None


def test_states_the_statistics_of_a_norm_apart() -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm1d(3, eps=0.25, affine=False).eval()
    module.running_mean.normal_()
    norm = read_program(trace_module(module, (torch.randn(2, 3),))).norms[0]
    assert norm.statistics is not None
    assert [tensor.name for tensor in norm.constants] == ["running_var", "running_mean"]
    assert float(algebra.evaluate(norm.statistics.eps).hi) == 0.25
    scale = 1 / np.sqrt(module.running_var.double().numpy() + 0.25)
    assert np.abs(algebra.evaluate(norm.scale).hi - scale).max() < 1e-15


def test_an_eps_of_zero_is_a_value() -> None:
    norm = read_program(trace_module(nn.BatchNorm1d(3, eps=0.0).eval(), (torch.randn(2, 3),))).norms[0]
    assert norm.statistics is not None
    assert float(algebra.evaluate(norm.statistics.eps).hi) == 0.0


def test_instance_norm_by_sample_is_no_fixed_map() -> None:
    assert read_program(trace_module(nn.InstanceNorm1d(3).eval(), (torch.randn(2, 3, 4),))).norms == ()


def test_a_copy_is_the_same_value_and_a_read_of_its_shape_no_reader() -> None:
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z = F.dropout(y.clone().contiguous(), 0.3, self.training, inplace=True).to(torch.float32).detach()
            return self.bn(z).reshape(y.shape[0], y.numel() // y.shape[0])

    graph = read_program(trace_module(Copies().eval(), (X,)))
    conv, norm = graph.nodes[0], graph.norms[0]
    assert norm.input == conv.output
    assert graph.readers[conv.output] == (norm.id,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_keep_their_bits_on_the_way_to_numpy_and_back(dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**15), 2**15 - 1, (64,), dtype=torch.int16)
    tensor = bits.view(dtype).reshape(-1, 2).t()
    array = to_numpy(tensor)
    assert array.dtype == (np.dtype(ml_dtypes.bfloat16) if dtype == torch.bfloat16 else str(dtype)[6:])
    back = to_torch(array, tensor)
    assert torch.equal(back.contiguous().view(torch.int16), tensor.contiguous().view(torch.int16))
    assert back.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_a_weight_of_many_megabytes_is_not_loaded_to_state_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []

    def counted(tensor: torch.Tensor) -> np.ndarray:
        loaded.append(tensor.numel())
        return to_numpy(tensor)

    program = trace_module(nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64)).eval(), (torch.randn(2, 64, 4, 4),))
    monkeypatch.setattr("bnfold.folding.torch_constants.to_numpy", counted)
    graph = read_program(program)
    assert loaded == []
    assert isinstance(graph.nodes[0], Linear)
    assert graph.nodes[0].weight.load().size == 64 * 64 * 9
    assert loaded == [64 * 64 * 9]
    assert math.prod(graph.nodes[0].weight.shape) == loaded[0]


def squared(times: int) -> Callable[..., torch.Tensor]:
    def step(module: Steps, y: torch.Tensor) -> torch.Tensor:
        factor = module.e
        for _ in range(times):
            factor = factor * factor
        return y * factor

    return step


def test_counts_a_constant_as_often_as_it_is_used_and_takes_no_huge_ones() -> None:
    """v = v * v, n times, is a tree of 2**n leaves: walking it would take for ever."""
    (norm,) = norms(squared(3))
    y = np.random.default_rng(0).standard_normal((2, 4, 3, 3))
    assert np.abs(value(norm, y) - y * to_numpy(Steps(squared(3)).e.detach()).astype(float) ** 8).max() < 1e-12
    assert norms(squared(30)) == []
