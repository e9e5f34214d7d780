from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_networks import CASES, Wired, as_good, conv, norm, randomised, wired

from bnfold.folding.torch_graph import fold_module


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


X = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(3))


def as_graph() -> tuple[nn.Module, nn.Module]:
    """A module that can only be folded as a graph, and the fold."""
    module = CASES["functional on the weight of a module"].module()
    folded, _, _ = fold_module(module, (X,))
    assert isinstance(folded, torch.fx.GraphModule)
    return module, folded


def test_puts_identity_in_place_of_a_norm_and_keeps_everything_else() -> None:
    module = CASES["written by hand"].module()
    folded, _, _ = fold_module(module, (X,))
    assert type(folded) is nn.Sequential
    assert [type(layer) for layer in folded] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Conv2d, nn.Identity]
    assert sorted(folded.state_dict()) == ["0.bias", "0.weight", "3.bias", "3.weight"]
    assert folded[0].weight.requires_grad


def test_keeps_what_the_class_of_a_module_offers() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.labels = ["a", "b"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(x))

        def count(self) -> int:
            return len(self.labels)

    module = randomised(Network()).eval()
    folded, _, _ = fold_module(module, (X,))
    assert isinstance(folded, Network)
    assert folded.count() == 2
    assert folded.labels is not module.labels


def test_a_norm_held_under_two_names_goes_under_both() -> None:
    def build() -> nn.Module:
        module = Wired(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
        module.alias = module.bn
        return module

    folded, _, _ = fold_module(randomised(build()).eval(), (X,))
    assert isinstance(folded.bn, nn.Identity)
    assert isinstance(folded.alias, nn.Identity)


@pytest.mark.parametrize(
    "wiring",
    [
        lambda m, x: m.bn(m.conv(x)) * m.bn.num_features,
        lambda m, x: F.relu(m.bn(m.conv(x))) + m.bn.running_var.sum(),
        lambda m, x: m.bn(input=m.conv(x)),
    ],
    ids=["its attributes", "its statistics", "its argument by name"],
)
def test_a_norm_of_which_more_is_used_is_left_correct(wiring: Any) -> None:
    module = randomised(wired(wiring, conv=conv(3, 4, 3), bn=norm(4))()).eval()
    folded, report, _ = fold_module(module, (X,))
    assert report.counts["folded"] == 1
    assert as_good(folded, module, (X,))


def test_computed_statistics_are_read_by_the_norm_that_they_belong_to() -> None:
    class Conditional(nn.Module):
        """The gamma of one norm comes out of a linear layer that has a norm behind it as well."""

        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.mean = nn.Linear(5, 4), nn.Parameter(torch.randn(4))
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)

        def forward(self, x: torch.Tensor, style: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            gamma = self.gamma(style)
            normed = (gamma - self.mean) / torch.sqrt(self.mean * self.mean + 1e-3)
            y = self.conv(x)
            return F.batch_norm(y, self.bn.running_mean, self.bn.running_var, weight=gamma), normed

    module = randomised(Conditional()).eval()
    folded, report, _ = fold_module(module, (X, torch.randn(5)))
    assert [row.reason for row in report.norms] == ["OTHER_READER", "COMPUTED_STATISTICS"]
    assert as_good(folded, module, (X, torch.randn(5)))


def test_a_norm_with_its_activation_in_one_module_folds_as_a_graph() -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.silu(super().forward(x))

    module = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4))).eval()
    folded, report, _ = fold_module(module, (X,))
    assert report.counts["folded"] == 1
    assert isinstance(folded, torch.fx.GraphModule)
    assert as_good(folded, module, (X,))


def test_a_graph_has_its_parameters_under_their_names() -> None:
    module, folded = as_graph()
    assert sorted(folded.state_dict()) == ["conv.bias", "conv.weight"]
    assert sorted(dict(folded.named_parameters())) == ["conv.bias", "conv.weight"]
    assert not torch.equal(folded.state_dict()["conv.weight"], module.state_dict()["conv.weight"])


def test_a_bias_that_was_not_there_gets_a_name_that_is_free() -> None:
    module = CASES["functional"].module()
    folded, _, fold_map = fold_module(module, (X,))
    assert [entry["tensor"] for entry in fold_map] == ["kernel", "kernel_bias"]
    assert sorted(folded.state_dict()) == ["kernel", "kernel_bias"]

    class Crowded(type(module)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kernel_bias = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.kernel_bias.sum()

    crowded = randomised(Crowded()).eval()
    folded, _, fold_map = fold_module(crowded, (X,))
    assert fold_map[1]["tensor"] == "kernel_bias_2"
    assert as_good(folded, crowded, (X,))


def test_a_graph_can_change_its_mode_dtype_and_batch() -> None:
    module, folded = as_graph()
    assert not folded.training
    assert folded.train().training
    assert not folded.eval().training
    for batch in (1, 2, 11):
        x = torch.randn(batch, 3, 6, 6)
        assert as_good(folded, module, (x,))
    wide = copy.deepcopy(module).double()
    x = X.double()
    # float32 weights, so only as good as they are.
    with torch.no_grad():
        assert float((folded.to(torch.float64)(x) - wide(x)).abs().max()) < 1e-4
    assert folded.state_dict()["conv.weight"].dtype == torch.float64


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_a_graph_can_be_copied_loaded_exported_and_compiled() -> None:
    module, folded = as_graph()
    other = copy.deepcopy(folded)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert as_good(folded, module, (X,))
    other.load_state_dict(folded.state_dict(), strict=True)
    assert torch.equal(other(X), folded(X))
    program = torch.export.export(folded, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert as_good(program.module(), module, (torch.randn(5, 3, 6, 6),))
    compiled = torch.compile(folded, backend="eager")
    assert torch.equal(compiled(X), folded(X))


def test_takes_modules_with_names_that_are_no_identifiers() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("1-0", nn.Conv2d(3, 4, 3, bias=False))
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.silu(self.bn(self.get_submodule("1-0")(x)))

    module = randomised(Odd()).eval()
    folded, _, fold_map = fold_module(module, (X,))
    assert [entry["tensor"] for entry in fold_map] == ["1-0.weight", "1-0.bias"]
    assert as_good(folded, module, (X,))


def test_copies_a_module_that_holds_tensors_with_a_history() -> None:
    module = CASES["functional"].module()
    module.cache = {"last": [module(X)]}
    folded, report, _ = fold_module(module, (X,))
    assert report.counts["folded"] == 1
    assert as_good(folded, CASES["functional"].module(), (X,))


def test_a_weight_that_is_a_buffer_or_a_plain_tensor_folds_into_one_of_the_same_kind() -> None:
    class Kernels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("buffer", torch.randn(4, 3, 3, 3))
            self.register_buffer("hidden", torch.randn(4, 4, 1, 1), persistent=False)
            self.plain = torch.randn(4, 4, 1, 1)
            self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.bn1(F.conv2d(x, self.buffer)))
            x = torch.relu(self.bn2(F.conv2d(x, self.hidden)))
            return self.bn3(F.conv2d(x, self.plain))

    module = randomised(Kernels()).eval()
    before = (module.hidden.clone(), module.plain.clone())
    folded, report, fold_map = fold_module(module, (X,))
    assert report.counts["folded"] == 3
    with torch.no_grad():
        wanted = module(X)
        assert float((folded(X) - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert "buffer" in dict(folded.named_buffers())
    assert {"buffer_bias", "hidden_bias"} <= set(dict(folded.named_parameters()))
    assert [entry["tensor"] for entry in fold_map if entry["role"] == "weight"][:2] == ["buffer", "hidden"]
    assert torch.equal(module.hidden, before[0])
    assert torch.equal(module.plain, before[1])


class Nested(nn.Module):
    """Arguments and results in containers, with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, pair: tuple[torch.Tensor, dict[str, torch.Tensor]], scale: float = 2.0) -> dict[str, Any]:
        first, named = pair
        y = self.bn(F.conv2d(first, self.weight))
        return {"sum": y + named["shift"], "parts": [y * scale, (named["shift"], None)]}


def test_a_graph_keeps_the_call_signature_of_its_source() -> None:
    module = randomised(Nested()).eval()
    pair = (X, {"shift": torch.randn(3, 4, 4, 4)})
    folded, report, _ = fold_module(module, (pair,))
    assert report.counts["folded"] == 1
    assert isinstance(folded, torch.fx.GraphModule)
    assert next(iter(inspect.signature(folded.forward).parameters)) == "pair"
    for call in (folded(pair), folded(pair=pair)):
        with torch.no_grad():
            wanted = module(pair)
        assert list(call) == ["sum", "parts"]
        assert call["parts"][1][1] is None
        assert float((call["parts"][0].detach() - wanted["parts"][0]).abs().max()) < 1e-4
        assert torch.equal(call["parts"][1][0], pair[1]["shift"])


def test_a_graph_takes_the_sizes_that_dynamic_shapes_frees() -> None:
    module = CASES["functional"].module()
    free = torch.export.Dim.AUTO
    folded, _, _ = fold_module(module, (X,), dynamic_shapes=({0: free, 2: free, 3: free},))
    assert as_good(folded, module, (torch.randn(2, 3, 9, 12),))


def test_buffers_and_constants_of_a_graph_are_its_own() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CASES["functional"].module()
            self.register_buffer("offset", torch.ones(4, 1, 1), persistent=False)
            self.plain = torch.full((1,), 3.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.inner(x)) + self.offset * self.plain

    module = Shifted().eval()
    folded, _, _ = fold_module(module, (X,))
    wanted = folded(X)
    with torch.no_grad():
        module.offset.zero_()
        module.plain.zero_()
    assert torch.equal(folded(X), wanted)
