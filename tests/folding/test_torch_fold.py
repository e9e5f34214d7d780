from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch_carrier_networks import ALL, ALL_MOVES, fold_case
from torch_networks import CASES, Case, as_good, digest, randomised, storages

from bnfold.errors import FoldError
from bnfold.folding.torch_graph import fold_module, inspect_module


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ALL)
def test_folds_what_can_be_folded_and_keeps_the_outputs(name: str) -> None:
    case = ALL[name]
    fold = fold_case(name)
    module, folded, report = fold.module, fold.folded, fold.report
    assert tuple((row.outcome, row.reason) for row in report.norms) == case.rows
    for batch in (1, 2, 5):
        assert as_good(folded, module, case.inputs(batch))
    assert (type(folded) is type(module)) == case.whole
    assert digest(module) == fold.before
    assert not storages(folded) & storages(module)
    check_map(fold.fold_map, folded, module, case.dtype)
    assert any(row.outcome == "folded" for row in report.norms) == bool(fold.fold_map)


@pytest.mark.parametrize("name", ALL_MOVES)
def test_folds_and_reduces_more_where_every_move_is_allowed(name: str) -> None:
    case = ALL[name]
    module = case.module()
    folded, report, fold_map = fold_module(module, case.inputs(), moves="all")
    assert [(row.outcome, row.reason) for row in report.norms] == [ALL_MOVES[name]]
    for batch in (1, 2, 5):
        assert as_good(folded, module, case.inputs(batch))
    assert isinstance(folded, torch.fx.GraphModule)
    check_map(fold_map, folded, module, case.dtype)


def check_map(fold_map: tuple[dict[str, Any], ...], folded: nn.Module, module: nn.Module, dtype: torch.dtype) -> None:
    state = folded.state_dict()
    known = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    for entry in fold_map:
        assert state[entry["tensor"]].dtype == dtype
        assert set(entry["from"]) <= set(known)
        assert entry["role"] in ("weight", "bias", "scale", "shift", "constant", "slope")
    assert len({entry["tensor"] for entry in fold_map}) == len(fold_map)


def test_the_check_of_outputs_notices_one_wrong_channel() -> None:
    case = CASES["conv2d without bias"]
    module = case.module()
    folded, _, fold_map = fold_module(module, case.inputs())
    weight = folded.state_dict()[fold_map[0]["tensor"]]
    with torch.no_grad():
        weight[2] *= 1.001
    assert not as_good(folded, module, case.inputs())


def test_every_folded_number_is_the_nearest_of_its_dtype() -> None:
    for name in ("conv2d without bias", "float16", "bfloat16"):
        case = CASES[name]
        module = case.module()
        folded, _, _ = fold_module(module, case.inputs())
        old, norm = module[0], module[1]
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        exact = old.weight.double() * scale.reshape(-1, 1, 1, 1)
        found = folded[0].weight.double()
        eps = torch.finfo(case.dtype).eps
        # Half a unit in the last place, which is at most eps/2 of the number.
        assert bool(((found - exact).abs() <= exact.abs() * eps / 2 * (1 + 1e-6)).all())


def test_takes_an_example_of_one_row_as_well() -> None:
    case = CASES["shape read between"]
    module = case.module()
    folded, report, _ = fold_module(module, case.inputs(batch=1))
    assert report.counts["folded"] == 1
    assert as_good(folded, module, case.inputs(batch=7))


def test_folds_a_network_that_fixes_its_batch_at_that_batch() -> None:
    class Fixed(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).view(1, 4, -1)

    case = CASES["functional on the weight of a module"]
    module = Case(lambda: Fixed(CASES["functional"].module()), case.shape, ()).module()
    folded, report, _ = fold_module(module, case.inputs(batch=1))
    assert report.counts["folded"] == 1
    assert as_good(folded, module, case.inputs(batch=1))


@pytest.mark.parametrize("rows", [1, 2])
def test_takes_no_network_that_goes_another_way_for_a_batch_of_one(rows: int) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.bn(y) if x.shape[0] > 1 else self.bn(torch.sigmoid(y))

    x = (torch.randn(rows, 3, 6, 6),)
    module = randomised(Residual()).eval()
    with pytest.raises(FoldError, match="Residual computes something else for a batch of one"):
        fold_module(module, x)
    folded, report, _ = fold_module(module, x, dynamic_shapes=({},))  # for the size of the example alone
    assert report.counts == {"folded": rows - 1, "reduced": 0, "kept": 2 - rows, "refused": 0}
    assert as_good(folded, module, x)


def test_keeps_a_norm_that_is_asked_to_be_kept() -> None:
    case = CASES["two norms"]
    folded, report, _ = fold_module(case.module(), case.inputs(), keep=("1",))
    assert [row.reason for row in report.norms] == ["KEEP_ASKED", "NO_LINEAR_BEFORE"]
    assert isinstance(folded[1], torch.nn.BatchNorm2d)


def test_inspect_gives_the_report_of_fold() -> None:
    case = CASES["one norm behind two convs, one of them read twice"]
    module = case.module()
    assert inspect_module(module, case.inputs()) == fold_module(module, case.inputs())[1]


def test_a_folded_module_has_nothing_left_to_fold() -> None:
    case = CASES["written by hand"]
    folded, _, _ = fold_module(case.module(), case.inputs())
    _, report, fold_map = fold_module(folded, case.inputs())
    assert (report.norms, fold_map) == ((), ())


def test_the_mode_and_hooks_of_the_source_stay_as_they_are() -> None:
    case = CASES["dropout and identity between"]
    module = case.module().train()
    module[0].eval()
    before = digest(module)
    folded, _, _ = fold_module(module, case.inputs())
    assert digest(module) == before
    assert not any(inner.training for inner in folded.modules())


def test_folds_around_a_weight_with_a_history() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        conv = torch.nn.utils.weight_norm(torch.nn.Conv2d(3, 4, 3))
    module = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(4)).eval()
    _, report, _ = fold_module(module, CASES["functional"].inputs())
    assert [row.reason for row in report.norms] == ["COMPUTED_WEIGHT"]


def test_refuses_statistics_that_make_no_finite_map() -> None:
    case = CASES["two norms"]
    module = case.module()
    module[1].running_var[2] = float("nan")
    module[2].running_var[0] = -1.0
    folded, report, _ = fold_module(module, case.inputs())
    assert [row.reason for row in report.norms] == ["NON_FINITE_STATISTICS", "NEGATIVE_VARIANCE"]
    assert {row.outcome for row in report.norms} == {"refused"}
    assert isinstance(folded[1], torch.nn.BatchNorm2d)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Sized(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : int(x.sum().item())]


class Leaving(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_numpy(x.detach().numpy())


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Branching(), "depends on the values of a tensor.*torch.cond"),
        (Sized(), "depends on the values of a tensor.*torch.cond"),
        (Leaving(), "numpy.*calls nothing but torch"),
    ],
)
def test_says_where_a_network_cannot_be_traced(module: nn.Module, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    place = rf"{type(module).__name__} cannot be traced .*\(forward, line \d+ of test_torch_fold.py\)"
    with pytest.raises(FoldError, match=f"{place}.*{said}"):
        fold_module(module, (torch.ones(2, 3),))
    assert capfd.readouterr() == ("", "")  # the tracer shows no graphs of its own


def test_says_that_a_network_does_not_take_the_example() -> None:
    with pytest.raises(FoldError, match=r"cannot be traced by torch\.export: .*on the example inputs"):
        fold_module(CASES["linear"].module(), (torch.ones(2, 3),))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "missing a required argument: 'x'"), ((torch.ones(2, 3),) * 2, "too many positional arguments")],
)
def test_says_which_example_inputs_are_missing(arguments: tuple[torch.Tensor, ...], said: str) -> None:
    with pytest.raises(FoldError, match=rf"Branching.forward.* {len(arguments)} example inputs \({said}\); give one"):
        fold_module(Branching(), arguments)


def test_takes_a_module_that_holds_functions() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.twice = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), lambda x: x * 2.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.twice(self.bn(self.conv(x)))

    module = randomised(Held()).eval()
    x = (torch.randn(2, 3, 6, 6),)
    folded, report, _ = fold_module(module, x)
    assert report.counts["folded"] == 1
    assert as_good(folded, module, x)


def test_says_that_a_module_cannot_be_copied() -> None:
    class Stubborn(torch.nn.Linear):
        def __deepcopy__(self, memo: object) -> Stubborn:
            raise RuntimeError("there is only one of me")

    with pytest.raises(FoldError, match=r"Stubborn cannot be copied .*there is only one of me"):
        fold_module(Stubborn(3, 4), (torch.ones(2, 3),))
