"""The numbers of every norm, epoch by epoch, and the warnings that they give while there is time."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from page_reader import HOSTILE, Reader
from torch import nn

from bnfold.cli import main
from bnfold.training import Checkpoint, load_recipe, train, trainer
from bnfold.training.networks.norms import FrozenBatchNorm
from bnfold.training.readiness import Forewarning, forewarnings, write_readiness
from bnfold.training.readiness.outlook import EPS_SHARE, HORIZON, LAST, NEAR, SPAN, TROUBLES
from bnfold.training.run import Run
from bnfold.training.trends import DEAD, NUMBERS, SIGMAS, Trends, channels_of, norm_numbers, write_trends

MODELS = Path(__file__).parents[2] / "models"
SHORT = ["train.epochs=4", "network.widths=[4, 4]"]
# The weights of the first layers shrink far below eps.
VANISHING = [
    "train.epochs=6", "network.widths=[4, 4]", "optimizer.kind=adamw", "optimizer.learning_rate=0.004",
    "optimizer.weight_decay=150",
]  # fmt: skip


def networks() -> tuple[nn.Module, nn.Module]:
    """Two states of a network with norms of all sorts: before an epoch and after it."""
    torch.manual_seed(3)
    states = [
        nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, eps=1e-3), FrozenBatchNorm(4), nn.BatchNorm2d(6, affine=False))
        for _ in range(2)
    ]
    for network in states:
        for part in list(network)[1:]:
            part.running_mean.normal_(1, 2)
            part.running_var.uniform_(1e-6, 4)
            if part.weight is not None:
                part.weight.data.normal_()
                part.bias.data.normal_()
    return states[0], states[1]


def by_hand(old: nn.Module, new: nn.Module) -> dict[str, float]:
    """A norm's numbers, channel by channel, in Python's floats."""
    rows = []
    for at in range(len(new.running_mean)):
        mean, variance = float(new.running_mean[at]), float(new.running_var[at])
        gamma, beta = (
            (1.0, 0.0) if new.weight is None else (float(new.weight.detach()[at]), float(new.bias.detach()[at]))
        )
        before, spread = float(old.running_var[at]) + new.eps, abs(gamma) * math.sqrt(variance / (variance + new.eps))
        a = gamma / math.sqrt(variance + new.eps)
        rows.append((
            variance, abs(a), abs(beta - a * mean), abs(mean) + 6 * math.sqrt(variance), abs(beta) + 6 * abs(gamma),
            spread, float(spread < 1e-3), new.eps / (variance + new.eps),
            ((mean - float(old.running_mean[at])) / math.sqrt(before)) ** 2,
            math.log((variance + new.eps) / before) ** 2,
        ))  # fmt: skip
    columns = list(zip(*rows, strict=True))
    root = [math.sqrt(sum(column) / len(column)) for column in columns[8:]]
    reduced = [min, max, max, max, max, min, sum, max]
    first = [reduce(column) for reduce, column in zip(reduced, columns, strict=False)]
    return dict(zip(NUMBERS, [*first, root[0], math.exp(root[1])], strict=True))


def test_numbers_are_those_of_a_recomputation_in_float64() -> None:
    before, after = networks()
    found = norm_numbers(channels_of(before), channels_of(after))
    assert found.shape == (3, len(NUMBERS))
    for row, name in zip(found, ("1", "2", "3"), strict=True):
        expected = by_hand(before.get_submodule(name), after.get_submodule(name))
        assert dict(zip(NUMBERS, row, strict=True)) == pytest.approx(expected, rel=1e-12)


def test_what_a_norm_holds_is_copied() -> None:
    network, _ = networks()
    held = channels_of(network)
    assert held is not None
    copy = held.mean.copy()
    network[1].running_mean.add_(1)
    assert np.array_equal(held.mean, copy)


class Bare(nn.Module):
    """A norm by its statistics alone, which are no buffers and of two types."""

    def __init__(self) -> None:
        super().__init__()
        self.running_mean = torch.tensor([1.0, 2.0]).half()
        self.running_var = torch.tensor([4.0, 9.0])
        self.eps = None


def test_a_norm_without_scale_shift_and_eps_has_those_of_a_plain_one() -> None:
    held = channels_of(nn.Sequential(Bare(), nn.BatchNorm1d(3).to(torch.bfloat16)))
    (row, _) = (dict(zip(NUMBERS, each, strict=True)) for each in norm_numbers(held, held))
    assert row["max_scale"] == pytest.approx(1 / math.sqrt(4 + 1e-5), rel=1e-12)
    assert (row["input_reach"], row["output_reach"], row["mean_drift"], row["variance_drift"]) == (20, 6, 0, 1)


def test_a_network_without_norms_has_no_numbers() -> None:
    assert channels_of(nn.Linear(2, 2)) is None
    assert norm_numbers(None, None).shape == (0, len(NUMBERS))


def test_a_variance_below_zero_and_what_is_not_finite_stay_in_the_numbers_of_their_norm() -> None:
    before, after = networks()
    after[1].running_var[2] = -0.5
    after[2].running_mean[0] = math.inf
    rows = [dict(zip(NUMBERS, row, strict=True)) for row in norm_numbers(channels_of(before), channels_of(after))]
    assert rows[0]["smallest_variance"] == -0.5
    assert math.isinf(rows[1]["input_reach"])
    assert all(math.isfinite(value) for value in rows[2].values())


# ------------------------------------------------------------------------------------------------ warnings


def trends(planned: int = 20, **series: list[float]) -> Trends:
    """One norm that is well but for the numbers that are given, epoch by epoch."""
    well = {"smallest_variance": 1.0, "smallest_spread": 1.0, "variance_drift": 1.0}
    epochs = len(next(iter(series.values())))
    columns = [series.get(name, [well.get(name, 0.0)] * epochs) for name in NUMBERS]
    return Trends(("norm",), np.array(columns).T[:, None, :], planned)


def said(found: Trends) -> list[tuple[int, str]]:
    return [(one.epoch, one.word) for one in forewarnings(found)]


def test_growth_is_warned_of_before_the_limit_and_once() -> None:
    found = trends(max_scale=[500.0 * 1.6**epoch for epoch in range(12)])
    (warning,) = forewarnings(found)
    assert (warning.epoch, warning.word) == (4, "overflows")
    assert warning.sentence.startswith("max|a| grows 1.6x an epoch and is 2.05e+03 now; at this pace it is above 8,188")
    assert ", in epoch 7;" in warning.sentence
    assert 500 * 1.6**5 < 8188 < 500 * 1.6**6
    assert str(warning) == f"epoch 4: norm: {warning.sentence}"


@pytest.mark.parametrize(
    "series",
    [
        [0.01 * 10.0**epoch for epoch in range(4)],  # steep, and far from the limit
        [4000.0, 3000.0, 4500.0, 4600.0, 4500.0],  # near, and not growing for three epochs
        [600.0 * 1.05**epoch for epoch in range(9)],  # growing, and not there within eight epochs
    ],
)
def test_growth_that_leads_nowhere_in_sight_is_not_warned_of(series: list[float]) -> None:
    assert said(trends(output_reach=series)) == []


def test_what_would_come_after_the_last_epoch_is_not_warned_of() -> None:
    series = [500.0 * 1.6**epoch for epoch in range(5)]
    assert said(trends(planned=5, max_scale=series)) == []
    assert said(trends(planned=7, max_scale=series)) == [(4, "overflows")]


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({"input_reach": [1.0, 9000.0, 1.0]}, [(2, "overflows")]),
        ({"smallest_variance": [1.0, -1e-3]}, [(2, "broken")]),
        ({"max_scale": [1.0, math.nan, math.nan], "input_reach": [1.0, 1.0, 1e5]}, [(2, "broken")]),
        ({"eps_share": [1e-4, 1e-3, 1e-2, 0.1, 0.7]}, [(4, "vanishes")]),
        ({"eps_share": [0.6]}, [(1, "vanishes")]),
        ({"smallest_spread": [0.2, 0.05, 0.02, 0.005, 1e-4]}, [(4, "dead channels")]),
        ({"smallest_spread": [1e-4, 1, 1, 1e-4], "dead": [1, 0, 0, 1]}, []),  # a gamma on its way through zero
        ({"smallest_spread": [0.0] * 4, "dead": [2] * 4}, [(4, "dead channels")]),
        # gammas that begin at zero, of a residual block that reaches 98% of the digits
        ({"smallest_spread": [4e-4, 8e-4, 9.8e-4, 0.01, 0.006], "dead": [2, 1, 1, 0, 0]}, []),
        ({"mean_drift": [9.0] * 20}, [(16, "drifts")]),
        ({"variance_drift": [9.0] * 15 + [1.9] * 5}, []),
        ({"mean_drift": [9.0] * 15 + [0.4] * 4 + [0.6]}, [(20, "drifts")]),
    ],
)
def test_each_trouble_is_warned_of_in_its_epoch(
    series: dict[str, list[float]], expected: list[tuple[int, str]]
) -> None:
    assert said(trends(**series)) == expected


def test_every_sentence_says_what_to_do() -> None:
    sentences = [
        one.sentence
        for series in (
            {"max_scale": [9000.0]}, {"max_scale": [500.0 * 2**epoch for epoch in range(4)]}, {"eps_share": [0.6]},
            {"eps_share": [1e-4, 1e-3, 1e-2, 0.1]}, {"smallest_spread": [0.0] * 4, "dead": [1] * 4},
            {"smallest_spread": [0.2, 0.05, 0.02, 0.005]}, {"mean_drift": [9.0] * 20}, {"smallest_variance": [-1.0]},
            {"max_shift": [math.inf]},
        )
        for one in forewarnings(trends(**series))
    ]  # fmt: skip
    assert len(sentences) == 9
    assert all("; " in sentence and not sentence.endswith(".") for sentence in sentences)


# ------------------------------------------------------------------------------------------- real trainings


def trained(recipe: Path, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run of a training in memory, as it ended."""
    runs: list[Run] = []

    def fit(run: Run, *args: object) -> str:
        runs.append(run)
        return original(run, *args)

    original = trainer._fit
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_fit", fit)
        trainer.train_in_memory(load_recipe(recipe, overrides), device="cpu")
    return runs[0]


@pytest.mark.parametrize("more", [[], ["train.ema=0.99", "network.norm=handwritten"]])
def test_a_healthy_training_is_warned_of_nothing(more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the recipe as it is, and in a form with another norm and an average."""
    run = trained(MODELS / "digits-cnn" / "recipe.toml", "train.epochs=14", *more, monkeypatch=monkeypatch)
    assert run.history[-1].held_out_accuracy > 0.97
    assert forewarnings(run.trends) == ()
    assert run.trends.values.shape == (14, 3, len(NUMBERS))


def test_weights_that_vanish_are_warned_of_before_they_have(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(recipe, *VANISHING, monkeypatch=monkeypatch)
    first = forewarnings(run.trends)[0]
    assert first.word == "vanishes"
    shares = run.trends.of(run.trends.names.index(first.norm), "eps_share")
    assert shares[first.epoch - 1] < EPS_SHARE < shares[-1]


class Constant(nn.Module):
    """A network one of whose channels does not change, and one whose gamma grows by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 8, bias=False)
        self.still = nn.BatchNorm1d(8)
        self.growing = nn.BatchNorm1d(8)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x.flatten(1))
        if self.training:
            with torch.no_grad():
                self.growing.weight.mul_(1.025)
        constant = torch.cat([torch.full_like(y[:, :1], 0.25), y[:, 1:]], dim=1)
        return self.head(torch.cat([self.still(constant), 1e-3 * self.growing(y)], dim=1))


def test_a_constant_channel_and_a_growing_gamma_are_warned_of_before_the_verdict_at_the_end(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "build_network", lambda *_: Constant())
    overrides = ["train.epochs=16", "optimizer.learning_rate=0.001"]
    run = trained(recipe, *overrides, monkeypatch=monkeypatch)
    warned = {(one.norm, one.word): one.epoch for one in forewarnings(run.trends)}
    assert warned.keys() == {("still", "vanishes"), ("still", "dead channels"), ("growing", "overflows")}
    write_readiness(
        tmp_path, run.judged.eval(), {"name": "net", "metrics": {}},
        np.random.default_rng(0).random((200, 1, 8, 8), np.float32), run.trends,
    )  # fmt: skip
    document = json.loads((tmp_path / "readiness.json").read_text())
    verdicts = {row["name"]: {each["word"] for each in row["findings"]} for row in document["norms"]}
    assert "dead channels" in verdicts["still"]
    assert all(epoch < 16 for epoch in warned.values())
    still, growing = (run.trends.names.index(name) for name in ("still", "growing"))
    assert run.trends.of(still, "dead")[warned["still", "dead channels"] - 1] == 0
    assert run.trends.of(growing, "output_reach")[warned["growing", "overflows"] - 1] < 8188
    assert run.trends.of(growing, "output_reach")[-1] > 8188
    assert [(each["norm"], each["word"], each["epoch"]) for each in document["trends"]["warnings"]] == [
        (one.norm, one.word, one.epoch) for one in forewarnings(run.trends)
    ]


# --------------------------------------------------------------------------------- files, resume, command


class Stop(Exception):
    """What ends a run in the middle."""


def stop_after_four(line: str) -> None:
    if line.startswith("epoch 4/"):
        raise Stop


def test_a_resumed_run_writes_the_same_trends_and_warns_once(recipe: Path, tmp_path: Path) -> None:
    whole: list[str] = []
    made = train(recipe, output=tmp_path / "whole", overrides=VANISHING, warn=whole.append)
    assert any(line.startswith("epoch 4:") for line in whole)
    parts: list[str] = []
    with pytest.raises(Stop):
        train(recipe, output=tmp_path / "run", overrides=VANISHING, warn=parts.append, progress=stop_after_four)
    again = train(recipe, resume=tmp_path / "run", overrides=VANISHING, warn=parts.append)
    assert parts == whole
    for name in ("norms.csv", "readiness.json", "readiness.html", "weights.safetensors"):
        assert (again.path / name).read_bytes() == (made.path / name).read_bytes()


def test_a_network_without_norms_is_resumed_too(recipe: Path, tmp_path: Path) -> None:
    overrides = [*SHORT, "network.norm=none", "train.epochs=5"]
    made = train(recipe, output=tmp_path / "whole", overrides=overrides)
    with pytest.raises(Stop):
        train(recipe, output=tmp_path / "run", overrides=overrides, progress=stop_after_four)
    again = train(recipe, resume=tmp_path / "run", overrides=overrides)
    assert (again.path / "norms.csv").read_bytes() == (made.path / "norms.csv").read_bytes()
    assert (made.path / "norms.csv").read_text().count("\n") == 1
    assert 'id="trends"' not in (made.path / "readiness.html").read_text()


def test_the_checkpoint_has_a_row_an_epoch_and_norm(checkpoint: Checkpoint) -> None:
    with (checkpoint.path / "norms.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["norm"]) for row in rows] == [
        (str(epoch), norm) for epoch in range(1, 5) for norm in ("features.1", "features.4")
    ]
    state = checkpoint.module().state_dict()
    assert float(rows[-1]["smallest_variance"]) == pytest.approx(float(state["features.4.running_var"].min()), rel=1e-5)
    assert list(rows[0]) == ["epoch", "norm", *NUMBERS]
    assert json.loads((checkpoint.path / "readiness.json").read_text())["trends"]["epochs"] == 4


def test_no_number_below_a_curve_is_broken_at_its_minus_on_a_narrow_page(checkpoint: Checkpoint) -> None:
    page = (checkpoint.path / "readiness.html").read_text()
    ends = re.findall(
        r'<span class="quiet"><span class="num">[^<]+</span> → <span class="num">[^<]+</span></span>', page
    )
    assert len(ends) == page.count(" → ") == 2 * 6, "of two norms"
    assert "white-space: nowrap" in page.partition(".num {")[2].partition("}")[0]


def test_the_command_says_every_warning_in_a_line_of_its_own(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for each in VANISHING for word in ("--set", each)]
    assert main(["train", str(recipe), "--device", "cpu", *settings, "-o", str(tmp_path / "run"), "--json"]) == 0
    out, err = capsys.readouterr()
    warnings = json.loads((tmp_path / "run" / "readiness.json").read_text())["trends"]["warnings"]
    assert warnings
    assert err.splitlines() == [f"bnfold: {Forewarning(**each)}" for each in warnings]
    assert json.loads(out)["checkpoint"]


def test_a_norm_with_a_hostile_name_stays_text_on_the_page_and_in_the_table(tmp_path: Path) -> None:
    found = trends(max_scale=[500.0 * 1.6**epoch for epoch in range(300)])
    found = Trends((HOSTILE,), found.values, 300)
    write_trends(tmp_path / "norms.csv", found)
    with (tmp_path / "norms.csv").open(newline="", encoding="utf-8") as file:
        assert {row["norm"] for row in csv.DictReader(file)} == {HOSTILE}
    images = np.zeros((2, 1, 8, 8), np.float32)
    write_readiness(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), {"name": "net"}, images, found)
    page = Reader()
    page.feed((tmp_path / "readiness.html").read_text())
    assert not page.open
    assert "script" not in page.tags
    assert "epoch 4:" in page.text
    assert page.tags.count("polyline") == 6


def test_every_number_word_and_threshold_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in (*NUMBERS, *TROUBLES))
    for threshold in (
        f"{SPAN} epochs in a row", f"within {HORIZON} epochs", f"a factor of {NEAR:g}", f"{EPS_SHARE:.0%}",
        f"after {LAST:.0%}", f"below {DEAD:g}", f"{SIGMAS:g} standard deviations",
    ):  # fmt: skip
        assert threshold in text, threshold
