from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from facts_networks import Network
from facts_oracle import number, tensor

from bnfold.folding import expressions, facts
from bnfold.folding.edits import SetWeights, sources
from bnfold.folding.expressions import ONE, ZERO, Leaf, Op, Scalar, View
from bnfold.folding.facts import GRAPH_OUTPUT, Graph, Opaque
from bnfold.folding.plan import make_plan
from bnfold.folding.report import OUTCOMES, FoldReport
from bnfold.folding.statistics import statistics_of, tensors_of


def leaf(*values: float) -> Leaf:
    return Leaf(tensor(f"t{values}", np.asarray(values)))


def test_literal_ones_and_zeros_are_left_out_of_expressions():
    x = leaf(2.0, 3.0)
    assert expressions.add(ZERO, x) is expressions.add(x, ZERO) is expressions.sub(x, ZERO) is x
    assert expressions.mul(ONE, x) is expressions.mul(x, ONE) is expressions.div(x, ONE) is x
    assert expressions.mul(ZERO, x) == expressions.mul(x, ZERO) == ZERO
    assert expressions.sub(ZERO, x) == Op("sub", (ZERO, x))


def test_each_step_is_the_map_that_it_says():
    x = np.array([0.5, -4.0])
    c = np.array([3.0, -0.25])
    by = leaf(3.0, -0.25)
    for kind, expected in {
        "add": x + c,
        "sub": x - c,
        "mul": x * c,
        "div": x / c,
    }.items():
        scale, shift = facts.affine_step(kind, by)
        assert np.array_equal(number(scale) * x + number(shift), expected)


def test_batch_norm_is_the_formula_of_the_paper():
    gamma, beta, mean, variance, eps = 1.5, -0.5, 2.0, 3.75, 0.25
    scale, shift = facts.batch_norm(leaf(gamma), leaf(beta), leaf(mean), leaf(variance), Scalar(eps))
    x = 7.0
    assert number(scale) * x + number(shift) == pytest.approx([gamma * (x - mean) / 2.0 + beta], rel=1e-15)


def test_leaves_are_named_once_in_order_and_shapes_broadcast():
    a, b = tensor("a", np.zeros(3)), tensor("b", np.zeros((2, 1)))
    expr = Op("add", (Op("mul", (Leaf(b), Leaf(a))), View(Leaf(a), (1, 3))))
    assert expressions.leaves(expr) == (b, a)
    assert expressions.shape_of(expr) == (2, 3)


def test_a_graph_output_and_the_parameters_of_a_norm_are_readers():
    net = Network()
    c = net.conv("x")
    out = net.bn("x", parameters=(c,))
    graph = net.graph(c, out)
    assert graph.readers[c] == (out, GRAPH_OUTPUT)
    assert graph.producers[c].id == c
    assert "x" not in graph.producers


def test_the_outputs_of_an_opaque_node_all_belong_to_it():
    node = Opaque("n", "n", "Split", ("x", "x"), ("a", "b"))
    graph = Graph((node,), ("x",), ("a",), {})
    assert graph.producers == {"a": node, "b": node}
    assert graph.readers["x"] == ("n", "n")


def test_a_module_name_is_told_only_when_it_is_one():
    def names(*given: str) -> str:
        return facts.parent_name(tuple(tensor(name, np.zeros(1)) for name in given))

    assert names("block.bn.weight", "block.bn.bias", "ones") == "block.bn"
    assert names("a.weight", "b.bias") == ""
    assert names("weight") == names() == ""


# ---------------------------------------------------------------------------------- statistics, told apart


def chain(net: Network, *steps: str) -> facts.Norm:
    x = "x"
    for kind in steps:
        x = net.step(x, kind, 1)
    (norm,) = make_plan(net.graph(x)).norms
    return norm


def spelt_out(net: Network, kind: str, *rest: str) -> facts.Norm:
    """(x - mean) / sqrt(variance + eps), or times its reciprocal, and what follows."""
    deviation = expressions.sqrt(Op("add", (leaf(4.0, 9.0, 16.0), Scalar(1e-3))))
    x = net.step("x", "sub", 1)
    x = net.step(x, kind, 1)
    by = deviation if kind == "div" else expressions.div(ONE, deviation)
    node = net.nodes[-1]
    assert isinstance(node, facts.Norm)
    scale, shift = facts.affine_step(kind, by)  # type: ignore[arg-type]
    step = facts.Step(node.steps[0].kind, View(by, (3,)))
    net.nodes[-1] = dataclasses.replace(node, scale=scale, shift=shift, steps=(step,))
    for more in rest:
        x = net.step(x, more, 1)
    (norm,) = make_plan(net.graph(x)).norms
    return norm


@pytest.mark.parametrize("kind", ["div", "mul"])
@pytest.mark.parametrize("rest", [(), ("mul",), ("add",), ("mul", "add")])
def test_a_spelt_out_batch_norm_gives_its_statistics(kind, rest):
    norm = spelt_out(Network(), kind, *rest)
    statistics = statistics_of(norm)
    assert statistics is not None
    scale, shift = facts.batch_norm(
        statistics.gamma, statistics.beta, statistics.mean, statistics.variance, statistics.eps
    )
    x = np.array([0.3, -2.0, 5.0])
    ours, theirs = number(scale) * x + number(shift), number(norm.scale) * x + number(norm.shift)
    assert np.abs(ours - theirs).max() <= 1e-14 * np.abs(theirs).max()
    stored = tensors_of(norm)
    assert stored["variance"].tolist() == [4.0, 9.0, 16.0]
    assert stored["eps"] == 1e-3
    assert stored["eps"].shape == ()
    assert set(stored) == {"gamma", "beta", "mean", "variance", "eps"}


@pytest.mark.parametrize("steps", [("sub", "div", "mul", "add"), ("mul", "add"), ("sub", "mul", "mul")])
def test_a_chain_that_is_not_spelt_as_batch_norm_gives_scale_and_shift(steps):
    """A division by a vector that is no square root tells no variance."""
    norm = chain(Network(), *steps)
    assert statistics_of(norm) is None
    stored = tensors_of(norm)
    assert set(stored) == {"scale", "shift"}
    x = np.array([0.3, -2.0, 5.0])
    found, expected = stored["scale"] * x + stored["shift"], number(norm.scale) * x + number(norm.shift)
    assert np.abs(found - expected).max() <= 1e-14 * np.abs(expected).max()


def test_steps_that_come_twice_or_in_another_order_tell_no_statistics():
    assert statistics_of(spelt_out(Network(), "div", "add", "mul")) is None
    assert statistics_of(spelt_out(Network(), "div", "mul", "mul")) is None
    assert statistics_of(spelt_out(Network(), "div", "mul", "add", "add")) is None


# ---------------------------------------------------------------------------------- edits and report


def test_an_edit_names_the_tensors_that_it_is_made_of():
    net = Network()
    c = net.conv("x")
    step = net.step(c, "add", 1)
    out = net.bn(step)
    edit = make_plan(net.graph(out)).edits[0]
    assert isinstance(edit, SetWeights)
    assert edit.bias is not None
    assert sources(edit.weight) == (f"{c}.weight", f"{out}.gamma", f"{out}.variance")
    assert set(sources(edit.bias)) == {
        f"{c}.bias", f"{step}.c", *(f"{out}.{part}" for part in ("gamma", "beta", "mean", "variance"))
    }  # fmt: skip


def test_a_report_survives_json_and_its_table_names_every_norm():
    net = Network()
    graph = net.graph(net.bn(net.conv("x"), name="good"), net.bn("x", name="lonely"))
    report = make_plan(graph).report
    assert FoldReport.from_dict(report.to_dict()) == report
    assert report.counts == {"folded": 1, "reduced": 0, "kept": 1, "refused": 0}
    assert tuple(report.counts) == OUTCOMES
    table = report.to_table()
    for word in ("good", "lonely", "NO_LINEAR_BEFORE", "2 norms found: 1 folded, 1 kept"):
        assert word in table
    assert FoldReport(()).to_table() == "no norm found"
