"""Networks in torch, one pattern each, with random non-trivial statistics, and what must become of their norms."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from bnfold.folding.report import FoldReport
from bnfold.folding.torch_graph import fold_module

FOLDED = ("folded", "")
Row = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """rows: outcome and reason of each norm, in graph order; whole: True where a copy of the module can be given.

    positive: no scale is below zero.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: tuple[Row, ...]
    whole: bool = True
    dtype: torch.dtype = torch.float32
    more: tuple[tuple[int, ...], ...] = field(default=())
    positive: bool = False

    def module(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        module = randomised(self.build())
        if self.positive:
            for inner in module.modules():
                if hasattr(inner, "running_mean"):
                    inner.weight.data.abs_()
        return module.to(self.dtype).eval()

    def inputs(self, batch: int = 2, seed: int = 1) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        shapes = (self.shape, *self.more)
        return tuple(torch.randn((batch, *shape), generator=generator).to(self.dtype) for shape in shapes)


def randomised(module: nn.Module) -> nn.Module:
    """Statistics far from their defaults: gamma of both signs and zero, small variances, large means."""
    for inner in module.modules():
        for name, tensor in [*inner.named_parameters(recurse=False), *inner.named_buffers(recurse=False)]:
            with torch.no_grad():
                if "var" in name:
                    tensor.copy_(torch.rand_like(tensor) * 2 + 0.01)
                elif "mean" in name or name == "beta":
                    tensor.normal_(0, 2)
                elif name == "gamma" or (name == "weight" and hasattr(inner, "running_mean")):
                    tensor.normal_(0, 1)
                    tensor.view(-1)[0] = 0.0
                    tensor.view(-1)[-1] = -0.5
                elif name == "bias":
                    tensor.normal_(0, 1)
    return module


def truth(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """What a module gives in float64."""
    with torch.no_grad():
        return tree_leaves(copy.deepcopy(module).double()(*(tensor.double() for tensor in inputs)))


def distance(module: nn.Module, inputs: tuple[torch.Tensor, ...], wanted: list[torch.Tensor]) -> float:
    """The largest difference of an output from the truth, relative to the largest |truth|."""
    with torch.no_grad():
        outputs = tree_leaves(module(*inputs))
    if [output.shape for output in outputs] != [tensor.shape for tensor in wanted]:
        return float("inf")
    apart = [
        float((output.double() - tensor).abs().max() / tensor.abs().max())
        for output, tensor in zip(outputs, wanted, strict=True)
    ]
    return max(apart)


def as_good(folded: nn.Module, unfolded: nn.Module, inputs: tuple[torch.Tensor, ...], *, bound: float = 1e-12) -> bool:
    """True when folding has lost no accuracy: the float64 run of the unfolded network is the truth.

    In float64 itself that run has errors of its own: sums in another order may differ by a relative `bound`.
    """
    wanted = truth(unfolded, inputs)
    if inputs[0].dtype == torch.float64:
        return distance(folded, inputs, wanted) <= bound
    unit = torch.finfo(inputs[0].dtype).eps
    return distance(folded, inputs, wanted) <= 2 * distance(unfolded, inputs, wanted) + 2 * unit


def digest(module: nn.Module) -> str:
    """A hash of everything in a state dict, with the mode of each module."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.data_ptr()}".encode() + raw)
    found.update(str([inner.training for inner in module.modules()]).encode())
    return found.hexdigest()


def storages(module: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values() if tensor.numel()}


@dataclass(frozen=True)
class Folded:
    """A case, folded: the source with its digest from before, and what the fold gave."""

    module: nn.Module
    before: str
    folded: nn.Module
    report: FoldReport
    fold_map: tuple[dict[str, Any], ...]


def folded_case(case: Case) -> Folded:
    module = case.module()
    before = digest(module)
    return Folded(module, before, *fold_module(module, case.inputs()))


class Written(nn.Module):
    """A batch norm written by hand, over any axis."""

    def __init__(self, channels: int, rank: int = 4, axis: int = 1, eps: float = 1e-3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_variance", torch.ones(channels))
        self.shape = [-1 if at == axis else 1 for at in range(rank)]
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = self.moving_mean.view(self.shape), self.moving_variance.view(self.shape)
        y = (x - mean) / torch.sqrt(variance + self.eps)
        return y * self.gamma.view(self.shape) + self.beta.view(self.shape)


class Rsqrt(Written):
    """The same by a reciprocal root and broadcasting with None."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.gamma * torch.rsqrt(self.moving_variance + self.eps)
        shift = self.beta - self.moving_mean * scale
        return x * scale[None, :, None, None] + shift[None, :, None, None]


class Frozen(Written):
    """As torchvision's FrozenBatchNorm2d."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w, b = self.gamma.reshape(1, -1, 1, 1), self.beta.reshape(1, -1, 1, 1)
        v, m = self.moving_variance.reshape(1, -1, 1, 1), self.moving_mean.reshape(1, -1, 1, 1)
        scale = w * (v + self.eps).rsqrt()
        return x * scale + (b - m * scale)


class Expanded(Written):
    """With statistics expanded to the size of the input, as old code does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.moving_mean.view(self.shape).expand_as(x)
        std = (self.moving_variance + self.eps).pow(0.5).view(self.shape).expand_as(x)
        return (x - mean) / std * self.gamma.view(self.shape) + self.beta.view(self.shape)


class InPlace(Written):
    """In place, step by step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= self.moving_mean.view(self.shape)
        x /= (self.moving_variance + self.eps).sqrt().view(self.shape)
        x *= self.gamma.view(self.shape)
        x += self.beta.view(self.shape)
        return x


class Functional(nn.Module):
    """F.conv2d and F.batch_norm on parameters of the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(F.conv2d(x, self.kernel), self.mean, self.variance, eps=1e-2)


class Wired(nn.Module):
    """Layers given by name and a forward given as a function of them and the inputs."""

    def __init__(self, wiring: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.wiring = wiring

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.wiring(self, *inputs)


def wired(wiring: Callable[..., Any], **layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Wired(wiring, **{name: layer() for name, layer in layers.items()})


def chain(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


def conv(*args: Any, **given: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*args, **given)


def norm(*args: Any, **given: Any) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm2d(*args, **given)


def _tied() -> nn.Module:
    module = Wired(
        lambda m, x: m.bn1(m.one(x)) + m.bn2(m.two(x)),
        one=nn.Conv2d(3, 4, 3, bias=False), two=nn.Conv2d(3, 4, 3, bias=False),
        bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4),
    )  # fmt: skip
    module.two.weight = module.one.weight
    return module


def _scaled(shape: tuple[int, ...], *layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A product with a parameter of a shape behind layers."""

    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*(layer() for layer in layers))
            self.factor = nn.Parameter(torch.randn(shape))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.factor

    return Scaled


def _masked() -> nn.Module:
    class Masked(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 3)
            self.register_buffer("mask", torch.rand(4, 3, 3, 3).round())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, self.weight * self.mask, self.bias)

    return nn.Sequential(Masked(), nn.BatchNorm2d(4))


NONLINEAR, OTHER, AXIS = (("kept", code) for code in ("NONLINEAR", "OTHER_READER", "AXIS_MISMATCH"))
COSTS_MORE, COMPUTED = (("kept", code) for code in ("COSTS_MORE", "COMPUTED_WEIGHT"))
UNTRACKED = ("refused", "NO_RUNNING_STATS")

CASES: dict[str, Case] = {
    "conv1d": Case(
        chain(lambda: nn.Conv1d(4, 6, 3, groups=2), lambda: nn.BatchNorm1d(6), nn.ReLU), (4, 9), (FOLDED,)
    ),
    "conv2d without bias": Case(chain(conv(3, 4, 3, bias=False, stride=2, padding=1), norm(4)), (3, 8, 8), (FOLDED,)),
    "conv2d padded by name": Case(chain(conv(3, 4, 3, padding="same"), norm(4)), (3, 6, 6), (FOLDED,)),
    "conv3d": Case(
        chain(lambda: nn.Conv3d(2, 4, 2, groups=2, dilation=2), lambda: nn.BatchNorm3d(4)), (2, 5, 5, 5), (FOLDED,)
    ),
    "depthwise": Case(
        chain(conv(4, 8, 3, groups=4, bias=False), norm(8), lambda: nn.ReLU(inplace=True)), (4, 6, 6), (FOLDED,)
    ),
    "conv transpose, as many channels in as out": Case(
        chain(lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, bias=False), norm(4)), (4, 4, 4), (FOLDED,)
    ),
    "conv transpose with groups": Case(
        chain(lambda: nn.ConvTranspose2d(6, 6, 3, groups=3, output_padding=1, stride=2), norm(6)), (6, 4, 4), (FOLDED,)
    ),
    "conv transpose 1d": Case(
        chain(lambda: nn.ConvTranspose1d(4, 8, 2, groups=2), lambda: nn.BatchNorm1d(8)), (4, 5), (FOLDED,)
    ),
    "conv transpose 3d": Case(
        chain(lambda: nn.ConvTranspose3d(2, 3, 2), lambda: nn.BatchNorm3d(3)), (2, 3, 3, 3), (FOLDED,)
    ),
    "linear": Case(chain(lambda: nn.Linear(5, 7), lambda: nn.BatchNorm1d(7), nn.ReLU), (5,), (FOLDED,)),
    "linear without bias, norm without gamma": Case(
        chain(lambda: nn.Linear(5, 7, bias=False), lambda: nn.BatchNorm1d(7, affine=False)), (5,), (FOLDED,)
    ),
    "linear on sequences, norm over the length that equals the features": Case(
        chain(lambda: nn.Linear(5, 6), lambda: nn.BatchNorm1d(6)), (6, 5), (AXIS,)
    ),
    "linear on sequences, norm over the features": Case(
        chain(lambda: nn.Linear(5, 6), lambda: Written(6, rank=3, axis=2)), (4, 5), (FOLDED,)
    ),
    "linear on sequences without bias, norm over the features": Case(
        chain(lambda: nn.Linear(5, 6, bias=False), lambda: Written(6, rank=3, axis=2)), (4, 5), (FOLDED,)
    ),
    "norm without gamma, another eps and momentum": Case(
        chain(conv(3, 4, 1), norm(4, affine=False, eps=0.1, momentum=None)), (3, 4, 4), (FOLDED,)
    ),
    "norm without statistics": Case(
        chain(conv(3, 4, 1), norm(4, track_running_stats=False)), (3, 4, 4), (UNTRACKED,)
    ),
    "norm first": Case(chain(norm(3), conv(3, 4, 3)), (3, 6, 6), (FOLDED,)),
    "norm behind an activation": Case(chain(conv(3, 4, 3), nn.ReLU, norm(4)), (3, 6, 6), (NONLINEAR,)),
    "two norms": Case(chain(conv(3, 4, 3), norm(4), norm(4)), (3, 6, 6), (FOLDED, FOLDED)),
    "written by hand": Case(
        chain(conv(3, 4, 3, bias=False), lambda: Written(4), nn.ReLU, conv(4, 5, 1), lambda: Written(5)),
        (3, 6, 6), (FOLDED, FOLDED),
    ),
    "written with a reciprocal root": Case(chain(conv(3, 4, 3), lambda: Rsqrt(4)), (3, 6, 6), (FOLDED,)),
    "frozen": Case(chain(conv(3, 4, 3), lambda: Frozen(4)), (3, 6, 6), (FOLDED,)),
    "expanded": Case(chain(conv(3, 4, 3), lambda: Expanded(4)), (3, 6, 6), (FOLDED,)),
    "functional": Case(Functional, (3, 6, 6), (FOLDED,), whole=False),
    "functional on the weight of a module": Case(
        wired(lambda m, x: m.bn(F.conv2d(x, m.conv.weight, m.conv.bias)), conv=conv(3, 4, 3), bn=norm(4)),
        (3, 6, 6), (FOLDED,), whole=False,
    ),
    "dropout and identity between": Case(
        chain(conv(3, 4, 3), nn.Dropout2d, nn.Identity, norm(4), nn.Dropout), (3, 6, 6), (FOLDED,)
    ),
    "output read twice": Case(
        wired(lambda m, x: (y := m.conv(x), m.bn(y) + y)[1], conv=conv(3, 4, 3), bn=norm(4)),
        (3, 6, 6), (FOLDED,), whole=False,
    ),
    "output given out": Case(
        wired(lambda m, x: (y := m.conv(x), {"normed": m.bn(y), "raw": y})[1], conv=conv(3, 4, 3), bn=norm(4)),
        (3, 6, 6), (OTHER,),
    ),
    "shape read between": Case(
        wired(lambda m, x: (y := m.conv(x), m.bn(y).reshape(y.shape[0], -1))[1], conv=conv(3, 4, 3), bn=norm(4)),
        (3, 6, 6), (FOLDED,),
    ),
    "conv called twice": Case(
        wired(lambda m, x: m.bn(m.conv(torch.relu(m.conv(x)))), conv=conv(3, 3, 3, padding=1), bn=norm(3)),
        (3, 6, 6), (COSTS_MORE,),
    ),
    "one norm behind two convs": Case(
        wired(lambda m, x: m.bn(m.a(x)) + m.bn(m.b(x)), a=conv(3, 4, 3), b=conv(3, 4, 3), bn=norm(4)),
        (3, 6, 6), (FOLDED, FOLDED), whole=False,
    ),
    "one norm behind two convs, one of them read twice": Case(
        wired(
            lambda m, x: (y := m.b(x), m.bn(m.a(x)) + m.bn(y) + y)[1],
            a=conv(3, 4, 3), b=conv(3, 4, 3), bn=norm(4),
        ),
        (3, 6, 6), (FOLDED, FOLDED), whole=False,
    ),
    "written in place": Case(
        chain(norm(3), conv(3, 4, 3), lambda: InPlace(4), lambda: nn.ReLU(inplace=True), nn.Dropout),
        (3, 6, 6), (FOLDED, FOLDED),
    ),
    "tied weights": Case(_tied, (3, 6, 6), (FOLDED, FOLDED), whole=False),
    "masked weight": Case(_masked, (3, 6, 6), (COMPUTED,)),
    "factor over the width, as wide as channels": Case(_scaled((1, 1, 1, 4), conv(3, 4, 3)), (3, 6, 6), (AXIS,)),
    "factor over the channels": Case(
        _scaled((4, 1, 1), conv(3, 4, 3), norm(4)), (3, 6, 6), (FOLDED, FOLDED), whole=False
    ),
    "two inputs": Case(
        wired(lambda m, x, y: (m.bn(m.conv(x)) + y, y * 2.0), conv=conv(3, 4, 3), bn=norm(4)),
        (3, 6, 6), (FOLDED,), more=((4, 4, 4),),
    ),
    "matmul by a parameter": Case(
        lambda: _Product(), (4, 5), (FOLDED,), whole=False,
    ),
    "instance norm with statistics": Case(
        chain(conv(3, 4, 3), lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), (3, 6, 6), (FOLDED,)
    ),
    "float64": Case(chain(conv(3, 4, 3), norm(4), nn.Flatten), (3, 6, 6), (FOLDED,), dtype=torch.float64),
    "float16": Case(chain(conv(3, 4, 3), norm(4), nn.Flatten), (3, 6, 6), (FOLDED,), dtype=torch.float16),
    "bfloat16": Case(chain(conv(3, 4, 3), norm(4), nn.Flatten), (3, 6, 6), (FOLDED,), dtype=torch.bfloat16),
}  # fmt: skip


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.norm = Written(6, rank=3, axis=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x @ self.weight)
