from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from facts_networks import HELD, REFUSED, Network, networks
from facts_oracle import agree, run, tensor
from hypothesis import HealthCheck, given, settings

from bnfold.errors import FoldError
from bnfold.folding import upstream as upstream_module
from bnfold.folding.edits import Bypass, SetAffine, SetWeights
from bnfold.folding.expressions import Given, add, mul
from bnfold.folding.facts import Graph, Linear, Norm, Reason
from bnfold.folding.plan import make_plan

# The file of a move is called as the function in it, which hides it from an ordinary import.
compose_module = sys.modules["bnfold.folding.moves.compose_affine"]


def folds_exactly(net: Network, graph: Graph, **given: Any) -> bool:
    """True when the graph gives the same outputs with the edits of its plan as without."""
    plan = make_plan(graph, **given)
    return agree(run(graph, net.inputs()), run(graph, net.inputs(), plan.edits))


def rows(graph: Graph, **given: Any) -> dict[str, tuple[str, str]]:
    return {row.name: (row.outcome, row.reason) for row in make_plan(graph, **given).report.norms}


# ---------------------------------------------------------------------------------- random networks


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks())
def test_no_plan_changes_what_a_random_network_computes(made):
    net, graph = made
    plan = make_plan(graph)
    assert agree(run(graph, net.inputs()), run(graph, net.inputs(), plan.edits))


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks())
def test_every_norm_has_one_row_and_every_folded_one_went_into_something(made):
    _, graph = made
    plan = make_plan(graph)
    takers = [edit for edit in plan.edits if isinstance(edit, SetWeights | SetAffine)]
    assert [norm.name for norm in plan.norms] == [row.name for row in plan.report.norms]
    folded = [norm.id for norm, row in zip(plan.norms, plan.report.norms, strict=True) if row.outcome == "folded"]
    rows_of = {norm.id for norm in plan.norms}
    bypassed = [edit.norm.id for edit in plan.edits if isinstance(edit, Bypass)]
    assert len(set(bypassed)) == len(bypassed)
    assert sorted(folded) == sorted(id for id in bypassed if id in rows_of), "a folded norm leaves, no other does"
    absorbed = {
        norm.id for edit in takers for norm in edit.norms if not isinstance(edit, SetAffine) or norm != edit.norm
    }
    assert set(folded) <= absorbed, "what left the graph is named by the edit that took it in"
    for edit in takers:
        ids = [norm.id for norm in edit.norms]
        assert len(set(ids)) == len(ids), "nothing takes a norm in twice"
    for row in plan.report.norms:
        assert (row.reason == "") == (row.outcome == "folded")
        assert (row.target == "") == (row.outcome != "folded")
        assert row.detail
    operators = [node.id for node in graph.nodes if isinstance(node, Norm) and not node.is_elementwise]
    assert set(operators) <= rows_of, "a norm operator never loses its row"
    linears = [edit.linear.id for edit in plan.edits if isinstance(edit, SetWeights)]
    assert len(set(linears)) == len(linears), "a linear is rounded once"


def test_random_networks_are_worth_the_name():
    """Negative control of the two above: the strategy reaches folds, refusals and the reasons that matter."""
    seen: set[str] = set()

    @settings(max_examples=300, suppress_health_check=list(HealthCheck), database=None)
    @given(networks())
    def look(made):
        for row in make_plan(made[1]).report.norms:
            seen.add(row.reason or row.outcome)

    look()
    wanted = {"folded", "OTHER_READER", "COSTS_MORE", "AXIS_MISMATCH", "AXIS_UNKNOWN", "NO_LINEAR_BEFORE"}
    assert wanted | {"TRAINING_MODE", "INSIDE_SUBGRAPH"} <= seen


def one_weight_off(edit: SetWeights) -> SetWeights:
    return dataclasses.replace(edit, weight=mul(edit.weight, Given((1.0 + 1e-6, 1.0, 1.0), (3, 1, 1))))


def one_bias_off(edit: SetWeights) -> SetWeights:
    assert edit.bias is not None
    return dataclasses.replace(edit, bias=add(edit.bias, Given((0.0, 0.0, 1e-6), (3,))))


@pytest.mark.parametrize("change", [one_weight_off, one_bias_off])
def test_one_broken_channel_is_seen(change):
    net = Network(seed=4)
    graph = net.graph(net.bn(net.conv("x"), gamma=[1.5, -0.5, 0.7]))
    assert folds_exactly(net, graph)
    edits = tuple(change(edit) if isinstance(edit, SetWeights) else edit for edit in make_plan(graph).edits)
    assert not agree(run(graph, net.inputs()), run(graph, net.inputs(), edits))


# ---------------------------------------------------------------------------------- what must fold

MUST_FOLD: dict[str, Callable[[Network], str]] = {
    "conv": lambda n: n.bn(n.conv("x")),
    "conv without bias": lambda n: n.bn(n.conv("x", bias=False)),
    "grouped": lambda n: n.bn(n.conv("x", 6, groups=3)),
    "transposed": lambda n: n.bn(n.conv("x", 6, transposed=True)),
    "transposed, grouped": lambda n: n.bn(n.conv("x", 6, transposed=True, groups=3)),
    "transposed, in equals out": lambda n: n.bn(n.conv("x", 3, transposed=True)),
    "alpha and beta": lambda n: n.bn(n.conv("x", alpha=-0.3, beta=2.5)),
    "two norms in a row": lambda n: n.bn(n.bn(n.conv("x"))),
    "five norms in a row": lambda n: n.bn(n.bn(n.bn(n.bn(n.bn(n.conv("x")))))),
    "hand-written chain": lambda n: n.step(n.step(n.step(n.step(n.conv("x"), "sub", 1), "div", 1), "mul", 1), "add", 1),
    "chain over the last axis": lambda n: n.step(n.step(n.dense("x"), "sub", 2), "mul", 2),
    "bias as an addition": lambda n: n.bn(n.step(n.conv("x", bias=False), "add", 1)),
    "scalar steps": lambda n: n.step(n.step(n.conv("x"), "div", None, 0.7), "add", None, -3.0),
    "norm, then a chain, then a norm": lambda n: n.bn(n.step(n.step(n.bn(n.conv("x")), "mul", 1), "add", 1)),
    "a gamma of zeros": lambda n: n.bn(n.conv("x"), gamma=[0.0, 0.0, 0.0]),
    "eps zero": lambda n: n.bn(n.conv("x"), eps=0.0),
    "tiny variance": lambda n: n.bn(n.conv("x"), variance=[1e-30, 2.0, 1e-8], eps=0.0),
}


@pytest.mark.parametrize("name", MUST_FOLD)
def test_folds_completely_and_exactly(name):
    net = Network(seed=11)
    graph = net.graph(MUST_FOLD[name](net))
    assert {outcome for outcome, _ in rows(graph).values()} == {"folded"}
    assert folds_exactly(net, graph)


def test_a_chain_of_elementwise_steps_is_one_row_and_a_bias_alone_is_none():
    net = Network()
    out = net.opaque("Tanh", net.step(net.conv("x"), "add", 1))
    assert rows(net.graph(out)) == {}
    for kind in ("sub", "div", "mul", "add"):
        out = net.step(out, kind, 1)
    assert len(rows(net.graph(out))) == 1


def test_a_chain_in_front_of_a_norm_operator_has_a_row_of_its_own():
    for behind_a_linear in (False, True):
        net = Network()
        x = net.conv("x") if behind_a_linear else "x"
        graph = net.graph(net.bn(net.step(net.step(x, "mul", 1), "add", 1)))
        assert [norm.kind for norm in make_plan(graph).norms] == ["Affine", "BatchNorm"]


# ---------------------------------------------------------------------------------- each condition


def other_node(net: Network) -> tuple[str, ...]:
    c = net.conv("x")
    return net.bn(c), net.opaque("Tanh", c)


def graph_output(net: Network) -> tuple[str, ...]:
    c = net.conv("x")
    return net.bn(c), c


def two_norms_of_one_linear(net: Network) -> tuple[str, ...]:
    c = net.conv("x")
    return net.bn(c), net.bn(c)


def computed_statistics_of_another_norm(net: Network) -> tuple[str, ...]:
    c = net.conv("x")
    return net.bn(c), net.bn("x", parameters=(c,), refusal=REFUSED)


def shared_weight(net: Network) -> tuple[str, ...]:
    c = net.conv("x")
    weight = net.weights()[0][1]
    return net.bn(c), net.opaque("Tanh", net.conv("x", weight=weight))


def other_axis(net: Network) -> tuple[str, ...]:
    return (net.bn(net.dense("x")),)  # (N, C, L) over L, then over C, where L = C


def other_axis_of_a_chain(net: Network) -> tuple[str, ...]:
    return (net.step(net.step(net.conv("x"), "mul", 2), "add", 2),)


def unknown_axis(net: Network) -> tuple[str, ...]:
    return (net.bn(net.dense("x", axis=None)),)


def held(net: Network) -> tuple[str, ...]:
    return (net.opaque("Tanh", net.bn(net.conv("x"), obstacle=HELD)),)


def refused(net: Network) -> tuple[str, ...]:
    return (net.bn(net.conv("x"), refusal=REFUSED),)


def nothing_linear(net: Network) -> tuple[str, ...]:
    return (net.bn(net.opaque("Tanh", net.conv("x"))),)


def input_of_the_graph(net: Network) -> tuple[str, ...]:
    return (net.bn("x"),)


@pytest.mark.parametrize(
    "build", [other_node, graph_output, two_norms_of_one_linear, computed_statistics_of_another_norm]
)
def test_keeps_a_norm_whose_input_somebody_else_reads(build, monkeypatch):
    """With the reason; and without the condition the same network comes out wrong."""
    net = Network(seed=2)
    graph = net.graph(*build(net))
    assert "OTHER_READER" in {code for outcome, code in rows(graph).values() if outcome == "kept"}
    assert make_plan(graph).edits == ()
    monkeypatch.setattr(
        upstream_module._Upstream, "_wanted", lambda self, value: next(iter(self.asked[value].values()))
    )
    assert not folds_exactly(net, graph)


@pytest.mark.parametrize(
    ("build", "code", "wrong_axis"),
    [(other_axis, "AXIS_MISMATCH", 2), (other_axis_of_a_chain, "AXIS_MISMATCH", 1), (unknown_axis, "AXIS_UNKNOWN", 2)],
)
def test_keeps_a_norm_over_another_axis_than_the_channels(build, code, wrong_axis):
    """With the reason; and taken for one over the channels it comes out wrong."""
    net = Network(seed=2)
    graph = net.graph(*build(net))
    assert set(rows(graph).values()) == {("kept", code)}
    assert make_plan(graph).edits == ()
    mistaken = tuple(
        dataclasses.replace(node, axis=wrong_axis) if isinstance(node, Norm | Linear) else node for node in graph.nodes
    )
    edits = make_plan(graph.with_nodes(mistaken)).edits
    assert any(isinstance(edit, SetWeights) for edit in edits)
    assert not agree(run(graph, net.inputs()), run(graph, net.inputs(), edits))


def test_a_shared_weight_is_copied_only_where_a_larger_model_is_allowed():
    net = Network(seed=2)
    graph = net.graph(*shared_weight(net))
    assert list(rows(graph).values()) == [("kept", "COSTS_MORE")]
    assert make_plan(graph).edits == ()
    assert [row.move for row in make_plan(graph).report.declined] == ["copy_shared_weight"]
    given_ = ["linear_to_norm", "copy_shared_weight"]
    assert list(rows(graph, moves=given_).values()) == [("folded", "")]
    assert folds_exactly(net, graph, moves=given_)


def test_a_shared_weight_whose_users_all_end_alike_stays_one():
    net = Network(seed=2)
    first = net.conv("x", bias=False)
    second = net.conv("x", bias=False, weight=net.weights()[0][1])
    out = net.bn(first)
    norm = net.nodes[-1]
    assert isinstance(norm, Norm)
    twin = dataclasses.replace(norm, id="twin", name="twin", input=second, output="twin", nodes=("twin",))
    net.nodes.append(twin)
    net.shapes["twin"] = net.shapes[out]
    graph = net.graph(out, "twin")
    assert set(rows(graph).values()) == {("folded", "")}
    one, two = (edit for edit in make_plan(graph).edits if isinstance(edit, SetWeights))
    assert one.weight is two.weight
    assert folds_exactly(net, graph)


@pytest.mark.parametrize(
    ("build", "outcome", "code"),
    [
        (held, "kept", "INSIDE_SUBGRAPH"),
        (refused, "refused", "TRAINING_MODE"),
        (nothing_linear, "kept", "NO_LINEAR_BEFORE"),
        (input_of_the_graph, "kept", "NO_LINEAR_BEFORE"),
    ],
)
def test_leaves_a_norm_where_it_stands(build, outcome, code):
    net = Network(seed=2)
    graph = net.graph(*build(net))
    assert set(rows(graph).values()) == {(outcome, code)}
    assert make_plan(graph).edits == ()


def test_without_the_refusal_of_a_norm_in_training_mode_the_outputs_change():
    net = Network(seed=2)
    graph = net.graph(*refused(net))
    blind = graph.with_nodes(
        tuple(dataclasses.replace(n, refusal=None) if isinstance(n, Norm) else n for n in graph.nodes)
    )
    edits = make_plan(blind).edits
    assert edits
    assert not agree(run(graph, net.inputs()), run(graph, net.inputs(), edits))


def inner_step_is_output(net: Network) -> tuple[str, ...]:
    middle = net.step(net.conv("x"), "mul", 1)
    return net.step(middle, "add", 1), middle


def inner_step_has_reader(net: Network) -> tuple[str, ...]:
    middle = net.step(net.conv("x"), "mul", 1)
    return net.step(middle, "add", 1), net.opaque("Tanh", middle)


def steps_over_two_axes(net: Network) -> tuple[str, ...]:
    return (net.step(net.step(net.conv("x"), "mul", 1), "add", 2),)


def inner_step_held(net: Network) -> tuple[str, ...]:
    return (net.step(net.step(net.conv("x"), "mul", 1, refusal=REFUSED), "add", 1),)


def composable_without(condition: str) -> Callable[[Graph, Norm, Norm], bool]:
    """The condition of the composition with one side of it dropped."""
    readers, axis, soundness = (condition != name for name in ("readers", "axis", "soundness"))

    def composable(graph: Graph, first: Norm, second: Norm) -> bool:
        return (
            first.is_elementwise
            and second.is_elementwise
            and (not readers or graph.readers[first.output] == (second.id,))
            and (not axis or first.axis == second.axis)
            and (not soundness or not any((first.refusal, second.refusal, first.obstacle, second.obstacle)))
        )

    return composable


@pytest.mark.parametrize(
    ("build", "condition"),
    [
        (inner_step_is_output, "readers"),
        (inner_step_has_reader, "readers"),
        (steps_over_two_axes, "axis"),
        (inner_step_held, "soundness"),
    ],
)
def test_composes_no_steps_where_that_would_be_wrong(build, condition, monkeypatch):
    net = Network(seed=6)
    graph = net.graph(*build(net))
    assert folds_exactly(net, graph)
    monkeypatch.setattr(compose_module, "_composable", composable_without("none of them"))
    assert folds_exactly(net, graph), "the copy of the condition with nothing dropped must hold"
    monkeypatch.setattr(compose_module, "_composable", composable_without(condition))
    with contextlib.suppress(KeyError):  # the value that somebody else reads may be gone altogether
        assert not folds_exactly(net, graph)


# ---------------------------------------------------------------------------------- numbers that cannot be folded


@pytest.mark.parametrize(
    ("given_", "code"),
    [
        ({"variance": [1.0, np.nan, 1.0]}, "NON_FINITE_STATISTICS"),
        ({"variance": [1.0, np.inf, 1.0]}, "NON_FINITE_STATISTICS"),
        ({"mean": [np.inf, 0.0, 1.0]}, "NON_FINITE_STATISTICS"),
        ({"gamma": [np.nan, 0.0, 1.0]}, "NON_FINITE_STATISTICS"),
        ({"beta": [1.0, 0.0, -np.inf]}, "NON_FINITE_STATISTICS"),
        ({"eps": float("nan")}, "NON_FINITE_STATISTICS"),
        ({"variance": [1.0, -1e-9, 1.0]}, "NEGATIVE_VARIANCE"),
        ({"variance": [1.0, 0.0, 1.0], "eps": 0.0}, "NON_FINITE_FOLD"),
        ({"variance": [1.0, 0.0, 1.0], "eps": 0.0, "gamma": [1.0, 0.0, 1.0]}, "NON_FINITE_FOLD"),
        ({"variance": [1.0, 1e-4, 1.0], "eps": -1e-3}, "NON_FINITE_FOLD"),
    ],
)
def test_refuses_statistics_that_are_no_finite_map(given_, code):
    net = Network()
    graph = net.graph(net.bn(net.conv("x"), **given_))
    assert list(rows(graph).values()) == [("refused", code)]
    assert make_plan(graph).edits == ()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_refuses_a_chain_that_divides_by_nothing(value):
    net = Network()
    graph = net.graph(net.step(net.step(net.conv("x"), "div", 1, [1.0, value, 2.0]), "add", 1))
    assert ("refused", "NON_FINITE_FOLD") in rows(graph).values()
    assert make_plan(graph).edits == ()


def test_refuses_a_chain_whose_steps_are_finite_and_whose_map_is_not():
    net = Network()
    graph = net.graph(net.step(net.step(net.conv("x"), "mul", 1, [1e200, 1.0, 1.0]), "mul", 1, [1e200, 1.0, 1.0]))
    assert list(rows(graph).values()) == [("refused", "NON_FINITE_FOLD")]


def test_refuses_a_chain_with_a_step_that_is_infinite_though_a_factor_of_zero_hides_it():
    net = Network()
    infinite = net.step(net.conv("x"), "div", 1, [1.0, 0.0, 1.0])
    graph = net.graph(net.step(net.step(infinite, "mul", None, 0.0), "add", 1))
    assert ("refused", "NON_FINITE_FOLD") in rows(graph).values()
    assert make_plan(graph).edits == ()


def narrow(dtype: str, weight: float, bias: float | None, gamma: float, shift: float = 0.0) -> Graph:
    """A dense layer (1, 1) with a norm of scale gamma and the given shift."""
    net = Network(channels=1, length=1)
    stored = tensor("w", np.asarray([[weight]], dtype))
    out = net.bn(net.conv("x"), gamma=[gamma], beta=[shift], mean=[0.0], variance=[1.0], eps=0.0)
    linear = net.nodes[0]
    assert isinstance(linear, Linear)
    own = None if bias is None else tensor("b", np.asarray([bias], dtype))
    net.nodes[0] = dataclasses.replace(linear, weight=stored, bias=own, out_first=True)
    return net.graph(out)


@pytest.mark.parametrize(
    ("dtype", "weight", "bias", "gamma", "shift", "code"),
    [
        ("float16", 60000.0, None, 1.0, 0.0, ""),
        ("float16", 65504.0, 1.0, 1.0, 0.0, ""),
        ("float16", 65504.0, 1.0, 1.001, 0.0, "OVERFLOW"),
        ("float16", 6e-8, 1.0, 1e6, 0.0, "OVERFLOW"),
        ("float16", 1.0, 300.0, 300.0, 0.0, "OVERFLOW"),
        ("float16", 1.0, None, 1.0, 70000.0, "OVERFLOW"),
        ("float16", 0.0, 0.0, 1e300, 0.0, ""),
        ("float32", 1e30, 1.0, 1e8, 0.0, ""),
        ("float32", 1e30, 1.0, -1e9, 0.0, "OVERFLOW"),
        ("float32", 1.0, None, 1.0, -1e39, "OVERFLOW"),
        ("float64", 1e200, 1.0, 1e108, 0.0, ""),
        ("float64", 1e200, 1.0, 1e109, 0.0, "OVERFLOW"),
        ("float64", 1e301, 1.0, 1e-5, 0.0, ""),
        ("float32", np.nan, 1.0, 1.0, 0.0, "NON_FINITE_WEIGHT"),
        ("float32", np.inf, 1.0, 1.0, 0.0, "NON_FINITE_WEIGHT"),
        ("float32", 1.0, np.nan, 1.0, 0.0, "NON_FINITE_WEIGHT"),
    ],
)
def test_folds_only_what_stays_in_the_range_of_the_weights(dtype, weight, bias, gamma, shift, code):
    graph = narrow(dtype, weight, bias, gamma, shift)
    plan = make_plan(graph)
    found = list(rows(graph).values())
    if code:
        assert found == [("kept", code)]
        return
    assert found == [("folded", "")]
    edit = plan.edits[0]
    assert isinstance(edit, SetWeights)
    for values in (edit.weight_values(), edit.bias_values()):
        assert np.isfinite(values).all()
        assert values.dtype == dtype


@pytest.mark.parametrize(
    ("weight", "alpha", "folds"), [(40000.0, 2.0, False), (40000.0, 0.5, True), (1.0, -1e5, False)]
)
def test_the_factor_of_a_linear_counts_for_its_range(weight, alpha, folds):
    graph = narrow("float16", weight, None, 1.0)
    graph = graph.with_nodes(
        tuple(dataclasses.replace(node, alpha=alpha) if isinstance(node, Linear) else node for node in graph.nodes)
    )
    assert list(rows(graph).values()) == [("folded", "") if folds else ("kept", "OVERFLOW")]


def test_the_second_of_two_norms_is_kept_when_only_it_overflows():
    net = Network(channels=1, length=1)
    first = net.bn(net.conv("x"), gamma=[100.0], mean=[0.0], beta=[1.0], variance=[1.0], eps=0.0)
    out = net.bn(first, gamma=[1000.0], mean=[0.0], beta=[1.0], variance=[1.0], eps=0.0)
    linear = net.nodes[0]
    assert isinstance(linear, Linear)
    net.nodes[0] = dataclasses.replace(linear, weight=tensor("w", np.ones((1, 1, 3), np.float16)), bias=None)
    assert list(rows(net.graph(out)).values()) == [("folded", ""), ("kept", "OVERFLOW")]


@pytest.mark.parametrize(("weight", "bias"), [("int32", "int32"), ("float32", "float16"), ("float64", "float32")])
def test_keeps_a_norm_behind_weights_of_other_or_mixed_dtypes(weight, bias):
    net = Network()
    out = net.bn(net.conv("x"))
    linear = net.nodes[0]
    assert isinstance(linear, Linear)
    net.nodes[0] = dataclasses.replace(
        linear, weight=tensor("w", np.ones((3, 3, 3), weight)), bias=tensor("b", np.ones(3, bias))
    )
    assert list(rows(net.graph(out)).values()) == [("kept", "DTYPE")]


def test_keeps_a_norm_of_another_number_of_channels():
    net = Network()
    c = net.conv("x")
    net.shapes[c] = (4, 3)
    assert list(rows(net.graph(net.bn(c))).values()) == [("kept", "AXIS_MISMATCH")]


# ---------------------------------------------------------------------------------- names, keep, moves


def chain_of(net: Network, count: int) -> str:
    out = "x"
    for at in range(count):
        out = net.opaque("Tanh", net.bn(net.conv(out), name=f"block{at}.bn"))
    return out


def test_keeps_what_was_asked_for_by_name_or_pattern():
    net = Network()
    graph = net.graph(chain_of(net, 3))
    assert rows(graph, keep=["block1.bn"])["block1.bn"] == ("kept", "KEEP_ASKED")
    assert rows(graph, keep=["block1.bn"])["block0.bn"] == ("folded", "")
    assert {code for _, code in rows(graph, keep=["block*"]).values()} == {"KEEP_ASKED"}
    assert folds_exactly(net, graph, keep=["block1.bn"])
    with pytest.raises(FoldError, match=r"no norm is called 'block9\.bn'"):
        make_plan(graph, keep=["block9.bn"])


def test_a_norm_applied_twice_has_two_names_and_each_can_be_kept():
    net = Network()
    graph = net.graph(net.bn(net.conv("x"), name="bn"), net.bn(net.conv("x"), name="bn"))
    assert set(rows(graph)) == {"bn", "bn#2"}
    assert rows(graph, keep=["bn#2"]) == {"bn": ("folded", ""), "bn#2": ("kept", "KEEP_ASKED")}


def test_names_of_rows_are_never_the_same():
    net = Network()
    outs = [net.bn(net.conv("x"), name=name) for name in ("bn", "bn#2", "bn", "bn")]
    outs += [net.step(net.step(net.conv("x"), "mul", 1, name="own"), "add", 1, name="own") for _ in range(2)]
    names = [row.name for row in make_plan(net.graph(*outs)).report.norms]
    assert len(set(names)) == len(names) == 6
    assert {"bn", "bn#2", "own"} <= set(names)


def test_moves_are_chosen_by_name():
    net = Network()
    graph = net.graph(net.bn(net.conv("x"), name="bn"))
    assert rows(graph, moves="all") == rows(graph, moves=["linear_to_norm"]) == {"bn": ("folded", "")}
    assert rows(graph, moves="compose_affine") == rows(graph, moves=[]) == {"bn": ("kept", "MOVE_NOT_CHOSEN")}
    with pytest.raises(FoldError, match="move 'fold_all' is not known"):
        make_plan(graph, moves=["fold_all"])


@pytest.mark.parametrize("moves", [["linear_to_norm"], ["compose_affine"], [], ["linear_to_norm", "compose_affine"]])
def test_every_choice_of_moves_is_exact(moves):
    net = Network(seed=8)
    out = net.conv("x")
    for kind in ("sub", "div", "mul", "add"):
        out = net.step(out, kind, 1)
    graph = net.graph(net.bn(net.conv(net.bn(net.step(out, "add", 1)))))
    assert folds_exactly(net, graph, moves=moves)


def test_a_linear_that_was_no_fact_says_why():
    net = Network()
    why = Reason("COMPUTED_WEIGHT", "the weight of Conv 'c' is computed, not a stored constant")
    graph = net.graph(net.bn(net.opaque("Tanh", "x", why=why)))
    assert list(rows(graph).values()) == [("kept", "COMPUTED_WEIGHT")]


def test_the_plan_leaves_the_facts_as_they_were():
    net = Network()
    graph = net.graph(chain_of(net, 3))
    before = repr(graph)
    weights = [weight.load().copy() for _, weight in net.weights()]
    for edit in make_plan(graph).edits:
        if isinstance(edit, SetWeights):
            edit.weight_values(), edit.bias_values()
    assert repr(graph) == before
    assert all(np.array_equal(a, w.load()) for a, (_, w) in zip(weights, net.weights(), strict=True))


def residual_blocks(net: Network, count: int) -> str:
    """Sums of a branch and what it came from, each norm behind its sum: nothing folds upstream."""
    out = "x"
    for _ in range(count):
        out = net.bn(net.add(out, net.activation(net.bn(net.conv(out)))))
    return out


def norms_without_a_linear(net: Network, count: int) -> str:
    out = "x"
    for _ in range(count):
        out = net.activation(net.bn(out, gamma=[1.0, 2.0, 0.5]))
    return out


def shared_by_all(net: Network, count: int) -> str:
    out = net.conv("x")
    weight = net.weights()[0][1]
    for _ in range(count):
        out = net.opaque("Tanh", net.bn(net.conv(out, weight=weight)))
    return out


def steps_between(net: Network, count: int) -> str:
    out = net.conv("x")
    for at in range(count):
        out = net.opaque("Tanh", out) if at % 10 == 9 else net.step(out, ("mul", "add")[at % 2], 1)
    return out


def calls_of(action: Callable[[], object]) -> int:
    """How many functions of Python are called: the same on every machine."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("moves", ["default", "all"])
@pytest.mark.parametrize("build", [chain_of, residual_blocks, norms_without_a_linear, shared_by_all, steps_between])
def test_the_work_of_a_plan_grows_with_the_length_of_a_network_and_not_with_its_square(build, moves):
    """Calls are counted, not timed: four times the length may cost no more than five times the calls."""
    found = []
    for count in (30, 120):
        net = Network()
        graph = net.graph(build(net, count))
        found.append(calls_of(lambda graph=graph: make_plan(graph, moves=moves)))
    assert found[1] < 5 * found[0]


@pytest.mark.parametrize("other", ["conv", "output"])
def test_a_norm_behind_an_input_lacks_a_linear_whoever_else_reads_the_input(other):
    net = Network()
    out = net.opaque("Tanh", net.bn("x"))
    graph = net.graph(out, net.conv("x") if other == "conv" else "x")
    assert list(rows(graph).values()) == [("kept", "NO_LINEAR_BEFORE")]


def test_keep_is_one_pattern_or_several():
    net = Network()
    graph = net.graph(chain_of(net, 2))
    assert rows(graph, keep="block*") == rows(graph, keep=["block*"])
    for wrong in (3, [3]):
        with pytest.raises(FoldError, match="expected names or patterns of norms"):
            make_plan(graph, keep=wrong)
    with pytest.raises(FoldError, match="expected 'default', 'all' or names out of"):
        make_plan(graph, moves=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [True, False])
def test_a_norm_behind_a_norm_goes_into_it_where_that_one_may_be_touched(kept):
    net = Network(seed=3)
    graph = net.graph(net.bn(net.bn(net.opaque("Tanh", "x"), name="front"), name="back"))
    given_ = {"keep": ["front"]} if kept else {}
    assert (rows(graph, **given_)["back"][0] == "kept") == kept
    assert folds_exactly(net, graph, **given_)


def test_a_norm_over_data_of_unknown_rank_is_kept():
    net = Network()
    graph = dataclasses.replace(net.graph(net.bn("x")), shapes={})
    assert list(rows(graph).values()) == [("kept", "AXIS_UNKNOWN")]
