from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_carrier_networks import ALL, ALL_MOVES, fold_case

from bnfold.export.onnx_model import translate
from bnfold.folding import onnx_graph
from bnfold.folding.report import NormOutcome
from bnfold.folding.torch_graph import inspect_module

# What these run is measured by the tests that name it; to measure it here too would take more than twice the time.
pytestmark = pytest.mark.no_cover

Row = tuple[str, str]
FOLDED: Row = ("folded", "")

# What the doors call otherwise: our row, theirs, and why.
DIFFERENT: dict[str, tuple[Row, Row]] = {
    # ONNX has no operator that keeps no statistics: the exporter computes them from the batch.
    "norm without statistics": (("refused", "NO_RUNNING_STATS"), ("refused", "COMPUTED_STATISTICS")),
    # The exporter of torch 2.13 leaves divisor_override out (the proof of an export notices it).
    "behind average pool with a divisor": (("kept", "COUNTED_PADDING"), FOLDED),
    # The exporter writes x[:, indices] as GatherND between two transposes.
    "behind channels in another order": (FOLDED, ("kept", "NO_LINEAR_BEFORE")),
}  # fmt: skip


def said(row: NormOutcome) -> tuple[str, str, str, str]:
    # ONNX has no operator for instance norm with running statistics: it is batch norm there.
    return row.name, row.kind.replace("InstanceNorm", "BatchNorm"), row.outcome, row.target


def is_owned(row: NormOutcome, module: torch.nn.Module) -> bool:
    """True for a norm named after the module that owns it; others go by the names of nodes, which doors give."""
    return row.name.partition("#")[0] in dict(module.named_modules())


def rows(report: tuple[NormOutcome, ...]) -> list[Row]:
    return [(row.outcome, row.reason) for row in report]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_both_doors_say_the_same_of_every_norm(name: str, caplog: Any) -> None:
    caplog.set_level("CRITICAL")  # shape inference of onnx does not know bfloat16 convolutions
    case = ALL[name]
    module, ours = fold_case(name).module, fold_case(name).report.norms
    theirs = onnx_graph.plan(translate(module, case.inputs())).report.norms
    if name in DIFFERENT:
        assert (rows(ours), rows(theirs)) == ([DIFFERENT[name][0]], [DIFFERENT[name][1]])
        return
    assert rows(ours) == rows(theirs)
    for our, their in zip(ours, theirs, strict=True):
        if is_owned(our, module):
            assert said(our) == said(their)


@pytest.mark.parametrize("name", sorted(set(ALL_MOVES) - set(DIFFERENT)))
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_both_doors_say_the_same_where_every_move_is_allowed(name: str) -> None:
    case = ALL[name]
    module = fold_case(name).module
    ours = inspect_module(module, case.inputs(), moves="all").norms
    theirs = onnx_graph.plan(translate(module, case.inputs()), moves="all").report.norms
    assert rows(ours) == rows(theirs)


def test_the_comparison_of_doors_can_fail() -> None:
    one, other = (fold_case(name).report.norms for name in ("output given out", "conv2d padded by name"))
    assert rows(one) != rows(other)


@pytest.mark.parametrize("name", ["written by hand", "frozen", "expanded", "written with a reciprocal root"])
def test_a_norm_written_by_hand_leaves_nothing_behind_through_both_doors(name: str) -> None:
    case = ALL[name]
    fold = fold_case(name)
    assert inspect_module(fold.folded, case.inputs()).norms == ()
    model, report, _ = onnx_graph.fold(translate(fold.module, case.inputs()))
    assert report.counts["folded"] == len(report.norms) > 0
    assert {node.op_type for node in model.graph} <= {"Conv", "Relu"}
