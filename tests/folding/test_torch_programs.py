from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch_networks import CASES, Wired, as_good, randomised

from bnfold.folding.torch_graph import fold_program, plan_program, read_program


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# torch copies tree specs by a class that it has deprecated itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


def exported(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    shapes: Any = tuple({0: Dim("batch")} for _ in inputs)
    shapes = (shapes,) if isinstance(module, Wired) else shapes  # its forward takes *inputs
    return torch.export.export(module, inputs, dynamic_shapes=shapes)


def tensors(program: ExportedProgram) -> dict[str, Any]:
    return {**program.state_dict, **program.constants}


@pytest.mark.parametrize(
    "name",
    [
        "conv2d without bias", "linear", "written by hand", "output read twice", "two inputs", "functional",
        "linear on sequences without bias, norm over the features", "one norm behind two convs", "bfloat16",
    ],
)  # fmt: skip
@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
def test_folds_a_program_as_it_folds_the_module(name: str, decomposed: bool) -> None:
    case = CASES[name]
    module = case.module()
    program = exported(module, case.inputs())
    if decomposed:
        program = program.run_decompositions({})
    before = {key: value.clone() for key, value in tensors(program).items()}
    graph = str(program.graph)
    folded, report, _ = fold_program(program)
    assert tuple((row.outcome, row.reason) for row in report.norms) == case.rows
    assert isinstance(folded, ExportedProgram)
    for batch in (2, 5):
        assert as_good(folded.module(), module, case.inputs(batch))
    assert str(program.graph) == graph
    assert all(torch.equal(value, before[key]) for key, value in tensors(program).items())
    ours = {value.untyped_storage().data_ptr() for value in tensors(program).values()}
    assert not ours & {value.untyped_storage().data_ptr() for value in tensors(folded).values()}


def test_folds_what_full_decomposition_leaves() -> None:
    case = CASES["conv2d without bias"]
    module = case.module()
    folded, report, _ = fold_program(exported(module, case.inputs()).run_decompositions())
    assert report.counts["folded"] == 1
    assert as_good(folded.module(), module, case.inputs(5))


def test_folds_a_product_with_factors() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(7))
            self.bn = nn.BatchNorm1d(7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(torch.addmm(self.bias, x, self.weight, beta=0.5, alpha=-2.0))

    torch.manual_seed(0)
    module = randomised(Scaled()).eval()
    x = torch.randn(3, 5)
    folded, report, _ = fold_program(exported(module, (x,)))
    assert report.counts["folded"] == 1
    assert as_good(folded.module(), module, (x,))


def test_keeps_the_signature_and_the_bounds_of_sizes() -> None:
    case = CASES["two inputs"]
    batch = Dim("batch", min=2, max=64)
    program = torch.export.export(case.module(), case.inputs(), dynamic_shapes=(({0: batch}, {0: batch}),))
    folded, _, _ = fold_program(program)
    assert folded.graph_signature.user_inputs == program.graph_signature.user_inputs
    assert list(folded.range_constraints.values()) == list(program.range_constraints.values())
    assert folded.call_spec == program.call_spec
    assert set(folded.state_dict) == {"conv.weight", "conv.bias"}


def test_a_folded_program_can_be_folded_and_decomposed_again() -> None:
    case = CASES["written by hand"]
    module = case.module()
    folded, _, _ = fold_program(exported(module, case.inputs()))
    again, report, fold_map = fold_program(folded)
    assert (report.norms, fold_map) == ((), ())
    assert as_good(again.run_decompositions().module(), module, case.inputs())


def test_refuses_every_norm_of_a_program_in_training_mode() -> None:
    case = CASES["two norms"]
    module = case.module().train()
    program = torch.export.export(module, case.inputs())
    report = plan_program(program).report
    assert [(row.outcome, row.reason) for row in report.norms] == [("refused", "TRAINING_MODE")] * 2
    assert [row.name for row in report.norms] == ["1", "2"]
    folded, _, fold_map = fold_program(program)
    assert fold_map == ()
    assert len([node for node in folded.graph.nodes if "batch_norm" in str(node.target)]) == 2
    functional = program.run_decompositions({})
    assert [row.reason for row in plan_program(functional).report.norms] == ["TRAINING_MODE"] * 2


def test_lists_norms_inside_branches_and_leaves_them_alone() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bn, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.cond(x.sum() > 0, lambda x: self.bn(self.linear(x)), lambda x: self.linear(x), (x,))
            return self.last(self.linear(x)) + y

    torch.manual_seed(0)
    module = randomised(Branch()).eval()
    x = (torch.randn(4, 3),)
    program = torch.export.export(module, x)
    folded, report, _ = fold_program(program)
    assert [row.reason for row in report.norms] == ["INSIDE_SUBGRAPH", "COSTS_MORE"]
    assert as_good(folded.module(), module, x)


def test_lists_norms_inside_branches_of_branches() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def normed(x: torch.Tensor) -> torch.Tensor:
                with torch.enable_grad():  # torch.export makes a graph of its own of this
                    return self.bn(self.linear(x))

            with torch.no_grad():
                return torch.cond(x.sum() > 0, normed, lambda x: self.linear(x), (x,))

    module = randomised(Nested()).eval()
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(4, 3),))
    folded, report, _ = fold_program(program)
    assert [(row.outcome, row.reason) for row in report.norms] == [("kept", "INSIDE_SUBGRAPH")]
    assert as_good(folded.module(), module, (torch.randn(4, 3),))


def test_a_tensor_that_the_graph_writes_to_is_no_constant() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.bn.running_mean.view(2, 2).add_(1.0)
            return self.bn(self.conv(x))

    torch.manual_seed(0)
    module = randomised(Counting()).eval()
    x = CASES["functional"].inputs()
    for program in (torch.export.export(module, x), torch.export.export(module, x).run_decompositions({})):
        rows = plan_program(program).report.norms
        assert [(row.name, row.outcome, row.reason) for row in rows] == [("bn", "refused", "COMPUTED_STATISTICS")]


def test_facts_name_tied_tensors_by_one_key() -> None:
    case = CASES["tied weights"]
    graph = read_program(exported(case.module(), case.inputs()))
    weights = [node.weight for node in graph.nodes if hasattr(node, "weight")]
    assert len(weights) == 2
    assert weights[0].key == weights[1].key
    assert graph.tensor_readers[weights[0].key] == 2
