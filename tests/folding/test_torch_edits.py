"""Edits written by hand and carried out on small programs; the oracle is what the edited network should compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_networks import Wired, randomised

from bnfold.folding.carriers import Window
from bnfold.folding.edits import AddConstant, Bypass, Edit, Redirect, SetAffine, SetSlope, SetWeights
from bnfold.folding.expressions import ONE, ZERO, Embed, Expr, Given, Join, Leaf, Scalar, add, mul, view
from bnfold.folding.facts import Carrier, Graph, Linear, Norm
from bnfold.folding.torch_edits import carry_out
from bnfold.folding.torch_graph import read_program
from bnfold.folding.torch_modules import fold_copy, graph_module
from bnfold.folding.torch_trace import trace_module

# torch copies tree specs by a class that it has deprecated itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")

X = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Bench:
    """A module in float64, its program and facts, and the fold that edits make of it."""

    def __init__(self, wiring: Callable[..., Any], x: torch.Tensor = X, **layers: nn.Module) -> None:
        torch.manual_seed(0)
        self.module = randomised(Wired(wiring, **layers)).to(x.dtype).eval()
        self.x = x
        self.program = trace_module(self.module, (x,))
        self.graph: Graph = read_program(self.program)

    def of(self, kind: type[Any]) -> list[Any]:
        return [node for node in self.graph.nodes if isinstance(node, kind)]

    @property
    def linears(self) -> list[Linear]:
        return self.of(Linear)

    @property
    def norms(self) -> list[Norm]:
        return self.of(Norm)

    def edited(self, *edits: Edit) -> tuple[torch.fx.GraphModule, list[dict[str, Any]]]:
        """The edited network after a check that it can be exported and decomposed again and takes any batch."""
        before = {name: tensor.clone() for name, tensor in self.program.state_dict.items()}
        program, fold_map = carry_out(self.program, edits)
        assert all(torch.equal(tensor, before[name]) for name, tensor in self.program.state_dict.items())
        module = graph_module(program)
        with torch.no_grad():
            given = module(self.x)
            for other in (program.run_decompositions().module(), trace_module(module, (self.x,)).module()):
                assert close(other(self.x), given)
            assert given.shape[1:] == module(torch.cat([self.x, self.x])).shape[1:]
        assert read_program(program).shapes  # fake values that hold together
        assert {entry["tensor"] for entry in fold_map} <= set(module.state_dict())
        return module, list(fold_map)


def close(one: torch.Tensor, other: torch.Tensor, bound: float = 1e-11) -> bool:
    one, other = one.detach(), other.detach()
    return one.shape == other.shape and float((one - other).abs().max()) <= bound * (1 + float(other.abs().max()))


def weights(linear: Linear, weight: Expr | None = None, bias: Expr | None = None, **given: Any) -> SetWeights:
    """An edit that changes what is given, and nothing else."""
    old = None if linear.bias is None else Leaf(linear.bias)
    whole = {"window": linear.window, "groups": linear.groups, "norms": (), "behind": None, **given}
    return SetWeights(linear, weight or Leaf(linear.weight), bias or old, **whole)


def numbers(values: torch.Tensor) -> Given:
    return Given(tuple(values.double().flatten().tolist()), tuple(values.shape))


def conv(*args: Any, **given: Any) -> nn.Conv2d:
    return nn.Conv2d(*args, **given)


def test_gives_a_linear_the_numbers_of_the_edit() -> None:
    bench = Bench(lambda m, x: m.conv(x), conv=conv(4, 5, 3, bias=False))
    (linear,) = bench.linears
    shift = torch.arange(5.0)
    edit = weights(linear, mul(Scalar(2.0), Leaf(linear.weight)), numbers(shift))
    module, fold_map = bench.edited(edit)
    assert close(module(bench.x), 2 * bench.module(bench.x) + shift.reshape(1, -1, 1, 1))
    assert list(module.state_dict()) == ["conv.bias", "conv.weight"]
    entry = {"linear": "conv", "norms": []}
    assert fold_map == [
        {"tensor": "conv.weight", "role": "weight", "from": ["conv.weight"], **entry},
        {"tensor": "conv.bias", "role": "bias", "from": [], **entry},
    ]


def test_takes_a_bias_away() -> None:
    layers = {"conv": conv(4, 5, 1), "dense": nn.Linear(8, 3)}
    bench = Bench(lambda m, x: m.dense(m.conv(x)), **layers)
    edits = [dataclasses.replace(weights(linear), bias=None) for linear in bench.linears]
    module, fold_map = bench.edited(*edits)
    wanted = F.linear(F.conv2d(bench.x, bench.module.conv.weight), bench.module.dense.weight)
    assert close(module(bench.x), wanted)
    assert sorted(module.state_dict()) == ["conv.weight", "dense.weight"]
    assert [entry["role"] for entry in fold_map] == ["weight", "weight"]


@pytest.mark.parametrize("padding", [0, "same", "valid"])
def test_a_kernel_may_grow(padding: Any) -> None:
    """A 1x1 convolution becomes a 3x3 one that adds its input to the output."""
    bench = Bench(lambda m, x: m.conv(x), conv=conv(4, 4, 1, padding=padding))
    (linear,) = bench.linears
    centred = Embed(Leaf(linear.weight), (4, 4, 3, 3), (0, 0, 1, 1), (1, 1, 1, 1))
    identity = Embed(numbers(torch.eye(4).reshape(4, 4, 1, 1)), (4, 4, 3, 3), (0, 0, 1, 1), (1, 1, 1, 1))
    window = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    module, _ = bench.edited(weights(linear, add(centred, identity), window=window))
    assert close(module(bench.x), bench.module(bench.x) + bench.x)
    assert module.state_dict()["conv.weight"].shape == (4, 4, 3, 3)


def test_uneven_padding_becomes_a_pad_in_front() -> None:
    bench = Bench(lambda m, x: m.conv(x), conv=conv(4, 5, (1, 3)))
    (linear,) = bench.linears
    window = Window((1, 3), (1, 2), (1, 1), ((0, 0), (2, 1)))
    module, _ = bench.edited(weights(linear, window=window))
    weight, bias = bench.module.conv.weight, bench.module.conv.bias
    assert close(module(bench.x), F.conv2d(F.pad(bench.x, (2, 1)), weight, bias, stride=(1, 2)))


def test_groups_may_go() -> None:
    bench = Bench(lambda m, x: m.conv(x), conv=conv(4, 6, 1, groups=2))
    (linear,) = bench.linears
    dense = torch.zeros(6, 4, 1, 1, dtype=torch.float64)
    dense[:3, :2], dense[3:, 2:] = bench.module.conv.weight.detach()[:3], bench.module.conv.weight.detach()[3:]
    module, _ = bench.edited(weights(linear, numbers(dense), groups=1))
    assert close(module(bench.x), bench.module(bench.x))
    assert module.state_dict()["conv.weight"].shape == (6, 4, 1, 1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, output_padding=1),
        conv(4, 6, 3, padding=2, stride=2, dilation=2, padding_mode="circular"),
    ],
)
def test_every_kind_of_convolution_takes_other_numbers(layer: nn.Module) -> None:
    bench = Bench(lambda m, x: m.conv(x), conv=layer)
    (linear,) = bench.linears
    assert linear.bias is not None
    edit = weights(linear, mul(Scalar(-3.0), Leaf(linear.weight)), mul(Scalar(-3.0), Leaf(linear.bias)))
    module, _ = bench.edited(edit)
    assert close(module(bench.x), -3 * bench.module(bench.x))


class Product(nn.Module):
    def __init__(self, product: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(5))
        self.v = nn.Parameter(torch.randn(5, 8))
        self.product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(self, x)


PRODUCTS = [
    lambda m, x: x @ m.w,
    lambda m, x: x @ m.v.t(),
    lambda m, x: x @ m.v.transpose(0, 1),
    lambda m, x: F.linear(x, m.v),
    lambda m, x: torch.addmm(m.b, x.flatten(0, 2), m.w, alpha=0.5, beta=-2.0),
    lambda m, x: torch.addmm(m.b, x.flatten(0, 2), m.v.mT),
    lambda m, x: torch.mm(x.flatten(0, 2), m.w) + torch.mm(x.flatten(0, 2), m.v.T),
]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("product", PRODUCTS)
def test_products_take_weights_and_biases(product: Callable[..., torch.Tensor], with_bias: bool) -> None:
    bench = Bench(lambda m, x: m.layer(x), layer=Product(product))
    shift = torch.arange(5.0, dtype=torch.float64) if with_bias else None
    linear = bench.linears[0]
    edit = weights(linear, mul(Scalar(3.0 * linear.alpha), Leaf(linear.weight)))
    module, _ = bench.edited(dataclasses.replace(edit, bias=None if shift is None else numbers(shift)))
    flat = bench.x.flatten(0, 2) if "flatten" in str(bench.program.graph) else bench.x
    of = bench.module.layer
    before = linear.alpha * (flat @ (of.w if linear.weight.name.endswith("w") else of.v.t()))
    after = 3 * before + (0 if shift is None else shift)
    rest = bench.module(bench.x) - before - (linear.beta * of.b if linear.bias is not None else 0)
    assert close(module(bench.x), after + rest)


@pytest.mark.parametrize("product", PRODUCTS[1:3])
def test_a_shared_matrix_is_copied_in_its_own_layout(product: Callable[..., torch.Tensor]) -> None:
    bench = Bench(lambda m, x: m.layer(x) + m.layer(2 * x), layer=Product(product))
    first, second = bench.linears
    edit = dataclasses.replace(weights(second, mul(Scalar(3.0), Leaf(second.weight))), bias=None)
    module, fold_map = bench.edited(edit)
    assert close(module(bench.x), bench.module.layer(bench.x) + 3 * bench.module.layer(2 * bench.x))
    assert fold_map[0]["tensor"] == "layer.v_2"
    assert module.state_dict()["layer.v_2"].shape == (5, 8)
    assert first.weight.key == second.weight.key


def test_a_weight_of_several_users_changes_for_one_alone() -> None:
    bench = Bench(lambda m, x: m.conv(x) + m.conv(x * 2), conv=conv(4, 5, 3))
    first, _ = bench.linears
    module, fold_map = bench.edited(weights(first, mul(Scalar(-1.0), Leaf(first.weight))))
    weight, bias = bench.module.conv.weight, bench.module.conv.bias
    wanted = F.conv2d(bench.x, -weight, bias) + F.conv2d(bench.x * 2, weight, bias)
    assert close(module(bench.x), wanted)
    assert [entry["tensor"] for entry in fold_map] == ["conv.weight_2", "conv.bias_2"]


def test_tied_weights_change_under_one_name_alone() -> None:
    one, two = conv(4, 5, 3, bias=False), conv(4, 5, 3, bias=False)
    two.weight = one.weight
    bench = Bench(lambda m, x: m.one(x) + m.two(x * 2), one=one, two=two)
    _, second = bench.linears
    module, _ = bench.edited(weights(second, mul(Scalar(-1.0), Leaf(second.weight))))
    weight = bench.module.one.weight
    assert close(module(bench.x), F.conv2d(bench.x, weight) + F.conv2d(bench.x * 2, -weight))


def test_equal_expressions_make_one_tensor() -> None:
    bench = Bench(lambda m, x: m.conv(x) + m.conv(x * 2), conv=conv(4, 5, 3, bias=False))
    first, second = bench.linears
    expr = mul(Scalar(-1.0), Leaf(first.weight))
    module, fold_map = bench.edited(weights(first, expr), weights(second, expr))
    assert close(module(bench.x), -bench.module(bench.x))
    assert len(module.state_dict()) == len(fold_map) == 1


def test_a_channel_may_be_added_between_two_linears() -> None:
    """The first gets one more output that is constantly 1, the second adds its sum to what it computes."""

    def wiring(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.two(F.dropout(F.relu(m.one(x)), 0.5, m.training).contiguous())

    bench = Bench(wiring, one=conv(4, 5, 3, bias=False), two=conv(5, 3, 3, padding=1))
    one, two = bench.linears
    zeros, ones = numbers(torch.zeros(1, 4, 3, 3)), numbers(torch.ones(3, 1, 3, 3))
    added = [
        weights(one, Join((Leaf(one.weight), zeros), 0), numbers(torch.tensor([0.0] * 5 + [1.0]))),
        weights(two, Join((Leaf(two.weight), ones), 1)),
    ]
    module, _ = bench.edited(*added)
    with torch.no_grad():
        y = F.relu(bench.module.one(bench.x))
        wanted = bench.module.two(y) + F.conv2d(torch.ones_like(y[:, :1]), torch.ones(3, 1, 3, 3).double(), padding=1)
    assert close(module(bench.x), wanted)
    program, _ = carry_out(bench.program, added)
    graph = read_program(program)
    assert [graph.shapes[node.outputs[0]][1] for node in graph.nodes if isinstance(node, Carrier)] == [6]


def test_readers_of_a_norm_read_its_input() -> None:
    bench = Bench(lambda m, x: (y := m.bn(m.conv(x)), F.relu(y) + y)[1], conv=conv(4, 5, 3), bn=nn.BatchNorm2d(5))
    module, fold_map = bench.edited(Bypass(bench.norms[0]))
    y = bench.module.conv(bench.x)
    assert close(module(bench.x), F.relu(y) + y)
    assert fold_map == []
    assert sorted(module.state_dict()) == ["conv.bias", "conv.weight"]


def test_a_view_that_the_layout_no_longer_allows_becomes_a_reshape() -> None:
    """Instance norm lays its data out anew; what it read may be turned."""
    layer = nn.InstanceNorm1d(8, affine=True, track_running_stats=True)
    bench = Bench(lambda m, x: m.bn(x[:, :, 0].transpose(1, 2)).view(x.shape[0], 32), bn=layer)
    module, _ = bench.edited(Bypass(bench.norms[0]))
    assert close(module(bench.x), bench.x[:, :, 0].transpose(1, 2).reshape(3, 32))


SCALE = torch.tensor([2.0, -1.0, 0.5, 3.0, -0.25], dtype=torch.float64)


@pytest.mark.parametrize(
    ("scale", "shift", "names"),
    [
        (None, SCALE, ["bn.shift"]),
        (SCALE, None, ["bn.scale"]),
        (SCALE, SCALE + 1, ["bn.scale", "bn.shift"]),
        (torch.tensor(2.0), torch.tensor(-1.0), ["bn.scale", "bn.shift"]),
    ],
)
def test_what_is_left_of_a_norm_takes_its_place(
    scale: torch.Tensor | None, shift: torch.Tensor | None, names: list[str]
) -> None:
    bench = Bench(lambda m, x: m.bn(m.conv(x)), conv=conv(4, 5, 3), bn=nn.BatchNorm2d(5))
    (norm,) = bench.norms
    a, b = (
        neutral if part is None else Scalar(float(part)) if part.ndim == 0 else numbers(part)
        for part, neutral in ((scale, ONE), (shift, ZERO))
    )
    module, fold_map = bench.edited(SetAffine(norm, a, b, (norm,)))
    y = bench.module.conv(bench.x)
    y = y if scale is None else y * scale.reshape(-1, 1, 1) if scale.ndim else y * scale
    y = y if shift is None else y + (shift.reshape(-1, 1, 1) if shift.ndim else shift)
    assert close(module(bench.x), y)
    assert [entry["tensor"] for entry in fold_map] == names
    assert [entry["norms"] for entry in fold_map] == [["bn"]] * len(names)
    assert not {"bn.weight", "bn.running_mean", "bn.num_batches_tracked"} & set(module.state_dict())


def test_an_affine_over_the_last_axis_and_one_of_several_steps() -> None:
    bench = Bench(lambda m, x: ((x * m.layer.b) - m.layer.b) / 3.0, X[..., :5], layer=Product(lambda _, x: x))
    steps = bench.norms
    (whole,) = [dataclasses.replace(steps[-1], input=steps[0].input, nodes=tuple(n.id for n in steps), axis=3)]
    module, _ = bench.edited(SetAffine(whole, ONE, numbers(SCALE), (whole,)))
    assert close(module(bench.x), bench.x + SCALE)
    assert "layer.b" not in module.state_dict()


def test_half_precision_gets_constants_of_its_own_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        bench = Bench(lambda m, x: m.bn(x), X.to(dtype), bn=nn.BatchNorm2d(4))
        (norm,) = bench.norms
        module, _ = bench.edited(SetAffine(norm, Scalar(0.1), numbers(SCALE[:4]), ()))
        assert {tensor.dtype for tensor in module.state_dict().values()} == {dtype}
        assert module(bench.x).dtype == dtype


def test_a_constant_is_added_before_every_reader_and_the_output() -> None:
    bench = Bench(lambda m, x: (y := m.conv(x), torch.cat([F.relu(y), y], 1))[1], conv=conv(4, 5, 3))
    (linear,) = bench.linears
    border = torch.randn(1, 5, 4, 6, dtype=torch.float64)
    module, fold_map = bench.edited(AddConstant(linear.output, numbers(border), linear, ()))
    y = bench.module.conv(bench.x) + border
    assert close(module(bench.x), torch.cat([F.relu(y), y], 1))
    assert [(entry["tensor"], entry["role"]) for entry in fold_map] == [("conv.constant", "constant")]
    given = Bench(lambda m, x: m.conv(x) + x[:, :1, 1:-1, 1:-1], conv=conv(4, 5, 3))
    module, _ = given.edited(AddConstant(given.graph.inputs[0], Scalar_(2.5), given.linears[0], ()))
    assert close(module(given.x), given.module(given.x + 2.5))


def Scalar_(value: float) -> Expr:  # noqa: N802 -- a constant of the value's rank
    return view(Given((value,), (1,)), (1, 1, 1, 1))


def test_edits_name_values_as_the_source_does() -> None:
    """A constant for a linear's output reaches the readers of the norm that stood behind it."""
    bench = Bench(lambda m, x: F.relu(m.bn(m.conv(x))), conv=conv(4, 5, 3), bn=nn.BatchNorm2d(5))
    (linear,), (norm,) = bench.linears, bench.norms
    edits = (Bypass(norm), AddConstant(linear.output, Scalar_(2.5), linear, ()))
    module, _ = bench.edited(*edits)
    assert close(module(bench.x), F.relu(bench.module.conv(bench.x) + 2.5))
    module, _ = bench.edited(AddConstant(norm.output, Scalar_(2.5), linear, ()), *edits)
    assert close(module(bench.x), F.relu(bench.module.conv(bench.x) + 5))


@pytest.mark.parametrize("axis", [1, 3])
def test_an_activation_gets_slopes_of_its_own_for_each_channel(axis: int) -> None:
    bench = Bench(lambda m, x: F.leaky_relu(m.conv(x), 0.1), conv=conv(4, 6, 3))
    (carrier,), (linear,) = bench.of(Carrier), bench.linears
    slopes = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 10.0], dtype=torch.float64)
    module, fold_map = bench.edited(SetSlope(carrier, numbers(slopes), axis, linear, ()))
    y = bench.module.conv(bench.x)
    along = slopes.reshape([-1 if at == axis else 1 for at in range(4)])
    assert close(module(bench.x), torch.where(y > 0, y, y * along))
    assert [(entry["tensor"], entry["role"]) for entry in fold_map] == [("conv.slope", "slope")]


def test_a_sum_whose_terms_were_merged_disappears_with_them() -> None:
    def wiring(m: Any, x: torch.Tensor) -> torch.Tensor:
        return F.relu(m.bn3(m.three(x)) + m.bn1(m.one(x)) + m.bn0(x))

    norms = {f"bn{n}": nn.BatchNorm2d(4) for n in (0, 1, 3)}
    bench = Bench(wiring, three=conv(4, 4, 3, padding=1, bias=False), one=conv(4, 4, 1, bias=False), **norms)
    three, one = bench.linears
    inner, outer = [node for node in bench.of(Carrier) if len(node.inputs) == 2]
    merged = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    edits: Sequence[Edit] = [
        weights(three, numbers(merged), numbers(SCALE[:4]), merged=(one,)),
        *(Bypass(norm) for norm in bench.norms),
        Redirect(inner, three.output),
        Redirect(outer, three.output),
    ]
    module, _ = bench.edited(*edits)
    assert close(module(bench.x), F.relu(F.conv2d(bench.x, merged, SCALE[:4], padding=1)))
    assert sorted(module.state_dict()) == ["three.bias", "three.weight"]
    assert [str(node.target) for node in module.graph.nodes if node.op == "call_function"] == [
        "aten.conv2d.default", "aten.relu.default",
    ]  # fmt: skip


def test_a_redirected_graph_output_is_the_value_it_was_redirected_to() -> None:
    bench = Bench(lambda m, x: m.one(x) + m.two(x), one=conv(4, 5, 3), two=conv(4, 5, 3))
    (total,) = bench.of(Carrier)
    module, _ = bench.edited(Redirect(total, bench.linears[0].output))
    assert close(module(bench.x), bench.module.one(bench.x))
    assert sorted(module.state_dict()) == ["one.bias", "one.weight"]


def test_new_names_are_free() -> None:
    class Crowded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(4, 5, 3, bias=False)
            self.conv.bias_2 = nn.Parameter(torch.ones(()))
            self.bias = nn.Parameter(torch.ones(5, 1, 1))
            self.conv.add_module("constant", nn.BatchNorm2d(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv.constant(self.conv(x)) * self.conv.bias_2 + self.conv(x * 2) + self.bias

    bench = Bench(lambda m, x: m.inner(x), inner=Crowded())
    first, second = bench.linears
    edits = [
        weights(first, bias=numbers(SCALE)), weights(second, bias=numbers(SCALE)),
        AddConstant(first.output, Scalar_(1.0), first, ()),
    ]  # fmt: skip
    module, fold_map = bench.edited(*edits)
    names = [entry["tensor"] for entry in fold_map]
    assert len(set(names)) == len(names) == 5
    assert set(names) <= set(module.state_dict())
    inner = bench.module.inner
    shift = SCALE.reshape(-1, 1, 1)
    wanted = inner.conv.constant(inner.conv(bench.x) + shift + 1) * inner.conv.bias_2
    assert close(module(bench.x), wanted + inner.conv(bench.x * 2) + shift + inner.bias)


def test_a_norm_named_as_a_tensor_does_not_take_its_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mul = nn.Parameter(torch.rand(4, 1, 1) + 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x * self.mul) * self.mul

    torch.manual_seed(0)
    module = Named().double().eval()
    program = trace_module(module, (X,))
    (first, _) = read_program(program).norms
    named = dataclasses.replace(first, name="mul")
    edited, _ = carry_out(program, [SetAffine(named, Scalar(2.0), ZERO, ())])
    assert close(graph_module(edited)(X), F.relu(2 * X) * module.mul)


def test_an_edited_module_can_be_compiled_saved_and_moved() -> None:
    bench = Bench(lambda m, x: m.bn(m.conv(x)), conv=conv(4, 5, 3, bias=False), bn=nn.BatchNorm2d(5))
    (linear,), (norm,) = bench.linears, bench.norms
    module, _ = bench.edited(weights(linear, bias=numbers(SCALE)), SetAffine(norm, ONE, numbers(SCALE), ()))
    wanted = module(bench.x)
    assert torch.equal(torch.compile(module, backend="eager")(bench.x), wanted)
    other, _ = bench.edited(weights(linear, bias=numbers(SCALE * 0)), SetAffine(norm, ONE, numbers(SCALE * 0), ()))
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(bench.x), wanted)
    assert module.float()(bench.x.float()).dtype == torch.float32


def fold(bench: Bench, *edits: Edit) -> nn.Module | None:
    edited, _ = carry_out(bench.program, edits)
    return fold_copy(bench.module, bench.program, edited, edits, (bench.x,), dynamic_shapes=None)


def test_a_copy_of_the_module_is_given_where_only_numbers_change() -> None:
    """Also where the norm stands before the linear."""
    bench = Bench(lambda m, x: m.conv(m.bn(x)), conv=conv(4, 5, 3), bn=nn.BatchNorm2d(4))
    (linear,), (norm,) = bench.linears, bench.norms
    copy = fold(bench, weights(linear, mul(Scalar(3.0), Leaf(linear.weight))), Bypass(norm))
    assert isinstance(copy, Wired)
    assert isinstance(copy.bn, nn.Identity)
    assert close(copy(bench.x), F.conv2d(bench.x, 3 * bench.module.conv.weight, bench.module.conv.bias))


def test_a_copy_of_the_module_loses_a_bias_that_the_edit_takes_away() -> None:
    bench = Bench(lambda m, x: m.bn(m.conv(x)), conv=conv(4, 5, 3), bn=nn.BatchNorm2d(5))
    (linear,), (norm,) = bench.linears, bench.norms
    copy = fold(bench, dataclasses.replace(weights(linear), bias=None), Bypass(norm))
    assert copy is not None
    assert sorted(copy.state_dict()) == ["conv.weight"]


def test_no_copy_of_the_module_is_given_where_more_than_numbers_change() -> None:
    bench = Bench(
        lambda m, x: F.leaky_relu(m.bn(m.one(x)) + m.two(x)),
        one=conv(4, 5, 1), two=conv(4, 5, 1), bn=nn.BatchNorm2d(5),
    )  # fmt: skip
    (one, two), (norm,) = bench.linears, bench.norms
    total, activation = bench.of(Carrier)
    grown = Embed(Leaf(one.weight), (5, 4, 3, 3), (0, 0, 1, 1), (1, 1, 1, 1))
    bypass = Bypass(norm)
    for edits in (
        [weights(one), bypass, Redirect(total, one.output)],
        [weights(one, merged=(two,)), bypass],
        [weights(one, grown, window=Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))), bypass],
        [SetAffine(norm, ONE, Scalar(1.0), ())],
        [AddConstant(one.output, Scalar_(1.0), one, ()), bypass],
        [SetSlope(activation, numbers(SCALE), 1, one, ()), bypass],
    ):
        assert fold(bench, *edits) is None
    assert fold(bench, weights(one), bypass) is not None
