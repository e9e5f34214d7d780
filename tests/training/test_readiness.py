"""Fold-readiness tells what is wrong with a norm, and leaves a good network alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_reader import HOSTILE, Reader
from torch import nn

from bnfold.training import Checkpoint
from bnfold.training.readiness import NormReadiness, judge, measure_readiness, measured_part, write_readiness
from bnfold.training.readiness.verdicts import AMPLIFICATION, FACTOR, FEWEST, HALF, MEANINGS, ROOM, SHIFT
from bnfold.training.statistics import recalibrate
from bnfold.training.trends import DEAD

META: dict[str, Any] = {"name": "net", "network": {"kind": "mlp"}, "data": "digits", "metrics": {}}


def images(count: int = 200, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, (count, 3, 6, 6)).astype(np.float32)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 6),
        nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4),
    )  # fmt: skip
    recalibrate(module, [torch.from_numpy(images(seed=2))], "exact")
    return module


def words(module: nn.Module, x: np.ndarray | None = None) -> dict[str, list[str]]:
    found = measure_readiness(module, images() if x is None else x)
    return {row.name: [finding.word for finding in judge(row)] for row in found.norms}


def test_a_good_network_is_ready() -> None:
    found = measure_readiness(network(), images())
    assert [(row.name, row.outcome, judge(row)) for row in found.norms] == [("1", "folded", ()), ("5", "folded", ())]
    assert found.images == 200
    assert not found.untraced


def change(norm: str, attribute: str, edit: Callable[[torch.Tensor], Any]) -> nn.Sequential:
    module = network()
    with torch.no_grad():
        edit(getattr(module.get_submodule(norm), attribute))
    return module


@pytest.mark.parametrize(
    ("module", "norm", "word"),
    [
        (change("1", "running_var", lambda v: v[3].fill_(-2.9e-3)), "1", "broken"),
        (change("1", "running_mean", lambda v: v[3].fill_(math.nan)), "1", "broken"),
        (change("5", "running_var", lambda v: v[0].fill_(math.inf)), "5", "broken"),
        (change("5", "weight", lambda v: v[1].fill_(1e5)), "5", "overflows"),
        (change("5", "bias", lambda v: v[1].fill_(3e4)), "5", "overflows"),
        (change("1", "running_mean", lambda v: v.add_(3)), "1", "drifts"),
        (change("5", "running_var", lambda v: v.mul_(5)), "5", "drifts"),
        (change("5", "weight", lambda v: v[2].fill_(1e-6)), "5", "dead channels"),
    ],
)
def test_what_is_wrong_with_a_norm_is_said_of_that_norm_first(module: nn.Module, norm: str, word: str) -> None:
    assert words(module)[norm][0] == word


def test_the_first_norm_that_breaks_is_told_from_those_that_get_what_it_gives() -> None:
    found = measure_readiness(change("1", "running_mean", lambda v: v[3].fill_(math.nan)), images())
    first, second = (judge(row)[0].sentence for row in found.norms)
    assert first.startswith("the fold refuses it")
    assert second.endswith("look at the norms before it")
    assert not [finding for row in found.norms for finding in judge(row) if finding.word == "overflows"]


def test_drift_is_not_judged_on_too_few_values() -> None:
    module = change("5", "running_mean", lambda v: v.add_(100))
    assert "drifts" in words(module)["5"]
    assert "drifts" not in words(module, images(60))["5"]


def test_a_norm_that_nothing_may_absorb_is_kept() -> None:
    module = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    recalibrate(module, [torch.from_numpy(images())])
    assert words(module) == {"1": ["kept"]}


def test_amplification_is_the_rounding_bound_over_roundoff_and_usual_size() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(108, 1, bias=False), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(1, 2))
    x = torch.full((300, 3, 6, 6), 1000.0) + 0.01 * torch.randn(300, 3, 6, 6)
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0, -1.0] * 54]))
    recalibrate(module, [x])
    (row,) = measure_readiness(module, x.numpy()).norms
    a = float(1 / (module[2].running_var + 1e-5).sqrt())
    bias = abs(a * float(module[2].running_mean))
    expected = a * 108 * float(x.max()) + bias  # the output has size 1
    assert row.amplification is not None
    assert expected * 0.99 < row.amplification < expected * 1.02
    assert [finding.word for finding in judge(row)] == ["imprecise"]


def test_the_gap_is_that_of_the_samples_in_units_of_the_norm() -> None:
    module = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, eps=0.5), nn.ReLU(), nn.Linear(2, 2)).eval()
    x = torch.randn(150, 4, generator=torch.Generator().manual_seed(0))
    z = module[0](x).detach().double()
    (row,) = measure_readiness(module, x.numpy()).norms
    shift = z.mean(0).abs() / math.sqrt(1.5)
    ratio = ((z.var(0) + 0.5) / 1.5).log()
    for found, expected in (
        (row.mean_shift, shift.square().mean().sqrt()),
        (row.worst_mean_shift, shift.max()),
        (row.variance_factor, ratio.square().mean().sqrt().exp()),
        (row.worst_variance_factor, ratio.abs().max().exp()),
    ):
        assert found is not None
        assert abs(found - float(expected)) < 1e-5
    assert row.values == 150


class Unsteady(nn.Module):
    """No fixed graph: which way depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(108, 4)
        self.norm = nn.BatchNorm1d(4)
        self.spare = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.linear(x.flatten(1)))
        return y if float(y.sum()) > 0 else -y


def test_a_network_that_cannot_be_traced_is_measured_all_the_same(tmp_path: Path) -> None:
    module = Unsteady()
    recalibrate(module, [torch.from_numpy(images())])
    found = measure_readiness(module, images())
    assert found.untraced
    assert [(row.name, judge(row)[-1].word) for row in found.norms] == [
        ("norm", "cannot tell"), ("spare", "cannot tell")
    ]  # fmt: skip
    assert found.norms[0].mean_shift is not None
    assert found.norms[1].mean_shift is None
    write_readiness(tmp_path, module, META, images())
    assert "It cannot be told what will fold" in (tmp_path / "readiness.html").read_text()


def test_a_network_that_fails_on_the_samples_gets_files_that_say_so(tmp_path: Path) -> None:
    write_readiness(tmp_path, nn.Sequential(nn.Linear(7, 2), nn.BatchNorm1d(2)), META, images())
    document = json.loads((tmp_path / "readiness.json").read_text())
    assert document["untraced"]
    assert document["norms"] == []


def test_measuring_leaves_the_network_as_it_was() -> None:
    module = network()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    measure_readiness(module, images())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module] == [True, False, *[True] * 6]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_samples_that_are_sorted_by_class_are_measured_evenly() -> None:
    x = np.arange(5000, dtype=np.float32).reshape(5000, 1, 1, 1)
    part = measured_part(x)
    assert len(part) == 1024
    assert part[0] == 0
    assert part[-1] == 4999
    assert 1 <= np.diff(part.ravel()).min() <= np.diff(part.ravel()).max() <= 5
    assert len(measured_part(np.zeros((900, 3, 224, 224), np.uint8))) == 55


def test_a_checkpoint_comes_with_its_readiness(checkpoint: Checkpoint) -> None:
    document = json.loads((checkpoint.path / "readiness.json").read_text())
    assert [row["name"] for row in document["norms"]] == ["features.1", "features.4"]
    assert {row["outcome"] for row in document["norms"]} == {"folded"}
    assert document["images"] == 359
    assert sum(document["counts"].values()) == 2
    assert (checkpoint.path / "readiness.html").stat().st_mode & 0o777 == 0o644


def test_numbers_that_are_not_finite_are_written_as_words(tmp_path: Path) -> None:
    write_readiness(tmp_path, change("1", "running_mean", lambda v: v[3].fill_(math.nan)), META, images())
    document = json.loads((tmp_path / "readiness.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert document["norms"][0]["mean_shift"] == "nan"
    assert document["norms"][0]["verdict"] == "broken"


def page_of(module: nn.Module, folder: Path, name: str = "net") -> Reader:
    write_readiness(folder, module, META | {"name": name}, images())
    reader = Reader()
    reader.feed((folder / "readiness.html").read_text())
    assert not reader.open
    return reader


def test_the_page_says_what_is_wrong_and_explains_every_word(tmp_path: Path) -> None:
    page = page_of(change("5", "running_var", lambda v: v[3].fill_(-2.9e-3)), tmp_path)
    assert "Not ready" in page.text
    assert "1 of 2 norms ready; broken: 1." in page.text
    assert "its smallest variance is -0.0029; recalibrate" in page.text
    assert all(word in page.text for word in MEANINGS)


@pytest.mark.parametrize(
    ("module", "text"),
    [(nn.Sequential(nn.Flatten(), nn.Linear(108, 2)), "there is no batch norm"), (network(), "all 2 norms will fold")],
)
def test_the_page_of_a_good_network_says_that_it_is_ready(tmp_path: Path, module: nn.Module, text: str) -> None:
    page = page_of(module, tmp_path)
    assert "Ready:" in page.text
    assert text in page.text


def test_hostile_names_stay_text_and_the_page_runs_and_loads_nothing(tmp_path: Path) -> None:
    page = page_of(network(), tmp_path, HOSTILE)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not {"src", "href", "onerror"} & page.attributes
    text = (tmp_path / "readiness.html").read_text()
    assert "\u202e" not in text
    assert "default-src &#x27;none&#x27;" in text


def test_a_norm_without_running_statistics_of_its_own_is_listed_with_what_the_fold_makes_of_it() -> None:
    class WrittenOut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(108, 4)
            self.register_buffer("mean", torch.rand(4))
            self.register_buffer("std", torch.rand(4) + 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu((self.linear(x.flatten(1)) - self.mean) / self.std)

    (row,) = measure_readiness(WrittenOut(), images()).norms
    assert row.outcome == "folded"
    assert row.channels is None
    assert judge(row) == ()


def test_every_word_and_threshold_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert all(f"| `{word}` |" in page for word in MEANINGS)
    for threshold in (
        f"above {HALF / ROOM:,.0f}, an eighth",
        f"more than {SHIFT:g} standard deviations",
        f"a factor of {FACTOR:g},",
        f"below {FEWEST} values",
        f"more than {AMPLIFICATION:,.0f} roundoffs",
        f"standard deviation below {DEAD:g}",
    ):
        assert threshold in page


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert judge(NormReadiness("norm", "BatchNorm2d", 4, "folded", "")) == ()


def test_the_page_of_a_training_does_not_wait_for_the_parity_suite_and_onnx_to_load() -> None:
    code = "import sys, bnfold.training.readiness; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "bnfold.training.readiness.page" in loaded
    assert not {"bnfold.parity", "onnx_ir", "onnxruntime"} & set(loaded)
