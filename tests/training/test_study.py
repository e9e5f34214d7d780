"""The norm study: what its findings say of runs that are known, and a small one on real digits."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from bnfold.cli import main
from bnfold.errors import DataError
from bnfold.training.recipe import load_recipe
from bnfold.training.study import run_study
from bnfold.training.study.experiments import AS_IT_IS, plan
from bnfold.training.study.findings import FAILS, HOLDS, OPEN, find, interval
from bnfold.training.study.plots import curves, sweep
from bnfold.training.study.runs import Run

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "models" / "digits-mlp" / "recipe.toml"


def made(experiment: str, accuracies: dict[tuple[str, float], list[list[float]]]) -> list[Run]:
    """Runs with known accuracies, a list by epoch for each seed; an empty one failed."""
    return [
        Run(experiment, label, place, seed, tuple(values), 1.0, "" if values else "the loss became nan")
        for (label, place), seeds in accuracies.items()
        for seed, values in enumerate(seeds)
    ]


def findings(experiment: str, accuracies: dict[tuple[str, float], list[list[float]]]) -> dict[str, Any]:
    planned = plan(load_recipe(RECIPE), (experiment,))
    return {found.claim: found for found in find(planned, made(experiment, accuracies))}


def test_an_interval_is_that_of_student() -> None:
    # Of 1, 2, 3, 4, 5: mean 3, deviation 1.5811, and 2.7764 is the quantile for four degrees of freedom.
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.n) == (3.0, 5)
    assert found.high - 3.0 == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert math.isnan(interval([1.0]).low)
    assert f"{interval([1.0]):.1f}" == "1.0 (n = 1)"


@pytest.mark.parametrize(
    ("without", "verdict"),
    [
        ([[0.2, 0.5, 0.99], [0.2, 0.6, 0.98], [0.1, 0.4, 0.99]], HOLDS),
        ([[0.99, 0.99, 0.99], [0.99, 0.98, 0.98], [0.99, 0.99, 0.99]], FAILS),
        ([[0.99, 0.99, 0.99], [0.2, 0.6, 0.99], [0.1, 0.99, 0.99]], OPEN),
        ([[], [], []], HOLDS),
    ],
)
def test_faster_is_judged_by_epochs_seed_by_seed(without: list[list[float]], verdict: str) -> None:
    batch = [[0.5, 0.98, 0.99]] * 3
    arms = {(f"{norm}, {init} initialisation", 0.0): batch if norm == "batch" else without
            for norm in ("batch", "none") for init in ("default", "he")}  # fmt: skip
    found = findings("speed", arms)["Batch norm reaches an accuracy in fewer epochs (he initialisation)"]
    assert found.verdict == verdict
    assert ("never did" in found.sentence) == (not without[0])


def test_one_seed_decides_nothing() -> None:
    arms = {(f"{norm}, {init} initialisation", 0.0): [[0.5, 0.99]] if norm == "batch" else [[0.1, 0.1]]
            for norm in ("batch", "none") for init in ("default", "he")}  # fmt: skip
    assert {found.verdict for found in findings("speed", arms).values()} == {OPEN}


def test_a_rate_with_which_nothing_trains_is_none_that_trains() -> None:
    lost = {(f"{norm}, {init} initialisation", rate): [[]] for norm in ("batch", "none") for init in ("default", "he")
            for rate in (0.1, 3.2)}  # fmt: skip
    assert all("is none of them with batch norm" in found.sentence for found in findings("rates", lost).values())
    own = {(AS_IT_IS, rate): [[]] for rate in (0.1, 3.2)}
    (found,) = findings("rates", own).values()
    assert "one or more is none of them." in found.sentence


def test_batches_of_which_none_can_be_trained_have_no_accuracy() -> None:
    (found,) = findings("batches", {(AS_IT_IS, size): [[]] for size in (1.0, 8.0)}).values()
    assert found.sentence.startswith("At 1 it cannot be trained: the loss became nan. At 8 it cannot")


def test_two_seeds_that_happen_to_agree_decide_nothing() -> None:
    runs = {("with a bias", 0.0): [[0.97], [0.98]], ("without a bias", 0.0): [[0.97], [0.98]]}
    assert {each.verdict for each in findings("bias", runs).values()} == {OPEN}
    faster = {
        (f"{norm}, {init} initialisation", 0.0): [values, values]
        for norm, values in (("batch", [0.9, 0.99]), ("none", [0.2, 0.99]))
        for init in ("default", "he")
    }
    assert {each.verdict for each in findings("speed", faster).values()} == {OPEN}


@pytest.mark.parametrize(("most", "verdict"), [(1, HOLDS), (4, FAILS)])
def test_larger_rates_are_those_at_which_more_than_nine_tenths_are_reached(most: int, verdict: str) -> None:
    arms = {}
    for init in ("default", "he"):
        for at, rate in enumerate((0.001, 0.004, 0.016, 0.064, 0.256)):
            arms[f"batch, {init} initialisation", rate] = [[0.9 if at <= 3 else 0.2]] * 2
            arms[f"none, {init} initialisation", rate] = [[0.9] if at <= most else []] * 2
    found = findings("rates", arms)["Batch norm trains with larger learning rates (default initialisation)"]
    assert found.verdict == verdict
    assert "0.064 with batch norm" in found.sentence


def test_where_no_rate_trains_none_is_said_and_not_zero() -> None:
    arms = {(f"{norm}, {init} initialisation", rate): [[0.9 if norm == "batch" else 0.2]] * 2
            for norm in ("batch", "none") for init in ("default", "he") for rate in (0.001, 0.016)}  # fmt: skip
    for found in findings("rates", arms).values():
        assert "is 0.016 with batch norm and none of them without." in found.sentence


@pytest.mark.parametrize(
    ("group", "verdict"), [([0.95, 0.96, 0.97], HOLDS), ([0.5, 0.51, 0.52], FAILS), ([0.3, 0.95, 0.99], OPEN)]
)
def test_small_batches_are_judged_by_the_difference(group: list[float], verdict: str) -> None:
    arms = {}
    for size in (1.0, 2.0, 4.0, 8.0, 32.0, 128.0):
        for norm in ("batch", "group", "layer"):
            arms[norm, size] = [[value] for value in (group if norm == "group" else [0.8, 0.81, 0.82])]
    arms["batch", 1.0] = [[]] * 3
    found = findings("batches", arms)
    assert found["Group norm is better than batch norm at batches of 2"].verdict == verdict
    alone = found["Batch norm cannot train on one sample a step"]
    assert alone.verdict == HOLDS
    assert "It cannot be trained: the loss became nan" in alone.sentence
    assert "layer norm 81.0%" in alone.sentence
    more = 100 * (sum(group) / 3 - 0.81)
    assert (
        f"batch norm 81.0% [78.5%, 83.5%] (n = 3), a difference of {more:+.2f} ["
        in found["And at batches of 128"].sentence
    )


def test_a_batch_norm_that_trains_on_one_sample_is_not_hidden() -> None:
    arms = {(norm, size): [[0.8]] * 2 for norm in ("batch", "group", "layer") for size in (1.0, 2.0, 128.0)}
    alone = findings("batches", arms)["Batch norm cannot train on one sample a step"]
    assert (alone.verdict, "It reaches 80.0%" in alone.sentence) == (FAILS, True)


@pytest.mark.parametrize(
    ("with_bias", "verdict"),
    [
        ([0.801, 0.808, 0.822], HOLDS),
        ([0.78, 0.82, 0.83], OPEN),
        ([0.75, 0.761, 0.769], FAILS),
        ([0.85, 0.861, 0.869], FAILS),
        ([0.8], OPEN),
    ],
)
def test_a_bias_makes_no_difference_where_the_interval_is_within_a_point(with_bias: list[float], verdict: str) -> None:
    arms = {("with a bias", 0.0): [[value] for value in with_bias],
            ("without a bias", 0.0): [[value] for value in [0.8, 0.81, 0.82][: len(with_bias)]]}  # fmt: skip
    (found,) = findings("bias", arms).values()
    assert found.verdict == verdict


def test_an_experiment_that_is_not_known_is_named() -> None:
    with pytest.raises(DataError, match=r"'sped' is not known; expected some of speed, .*, order, bias"):
        plan(load_recipe(RECIPE), ("sped",))


def test_the_help_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    names = capsys.readouterr().out.rpartition("--experiment NAME")[2].partition(";")[0]
    said = set(names.replace(",", " ").split()) - {"or"}
    assert said == {experiment.name for experiment in plan(load_recipe(RECIPE))}


def test_every_norm_that_the_network_takes_is_an_arm() -> None:
    (norms,) = plan(load_recipe(ROOT / "models" / "digits-cnn" / "recipe.toml"), ("norms",))
    assert [arm.label for arm in norms.arms] == ["batch", "batch_renorm", "layer", "group", "instance", "none"]
    assert norms.left_out == ""


def test_a_network_that_has_no_order_is_studied_without() -> None:
    resnet = load_recipe(ROOT / "models" / "digits-resnet" / "recipe.toml")
    assert [experiment.name for experiment in plan(resnet)] == ["speed", "rates", "batches", "norms", "bias"]
    with pytest.raises(DataError, match=r"changes network\.order, which network 'resnet' does not have; take another"):
        plan(resnet, ("order",))


def test_a_study_says_how_far_it_is_and_how_long_it_takes(tmp_path: Path) -> None:
    said: list[str] = []
    small = ["train.epochs=1", "network.widths=[8]", "data.name=synthetic", "data.count=64", "data.size=4"]
    output = tmp_path / "study"
    run_study(RECIPE, output=output, overrides=small, experiments=["bias"], seeds=1, jobs=1, progress=said.append)
    assert said[0] == "0/2 trainings"
    assert [line.split("  ")[0] for line in said[1:]] == ["1/2", "2/2"]
    assert said[-1].split("  ")[1] == "0 s left"


def test_a_study_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    options = ["--set", "train.epochs=2", "--set", "network.widths=[16]", "--seeds", "2", "--jobs", "1"]
    names = ["--experiment", "order", "--experiment", "norms", "--experiment", "bias"]
    assert main(["study", str(RECIPE), "-o", str(folder), "--json", *options, *names]) == 0
    document = json.loads((folder / "study.json").read_text())
    assert {run["label"] for run in document["runs"]} >= {"norm first", "group", "none", "with a bias"}
    assert "instance" not in {run["label"] for run in document["runs"]}, "no space to average over in a dense network"
    assert all(len(run["accuracies"]) == 2 and not run["failure"] for run in document["runs"])
    (norms,) = [found["sentence"] for found in document["findings"] if found["experiment"] == "norms"]
    assert norms.endswith("Network 'mlp' does not take the norm 'instance'.")
    assert document["about"]["command"].endswith(f"--seeds=2 --jobs=1 -o {folder}")
    assert len({tuple(run["accuracies"]) for run in document["runs"]}) > 8  # the arms and the seeds differ
    page = (folder / "study.html").read_text()
    assert page.count("<svg") == 3
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert json.loads(capsys.readouterr().out)["trainings"] == len(document["runs"])


def test_what_cannot_be_trained_is_a_finding_and_no_zero_in_plot_and_table(tmp_path: Path) -> None:
    small = ["data.name=synthetic", "data.count=64", "data.size=4", "train.epochs=1", "network.widths=[8]"]
    study = run_study(RECIPE, output=tmp_path / "study", overrides=small, experiments=["batches"], seeds=1, jobs=1)
    assert {(run.label, run.place) for run in study.runs if run.failure} == {("batch", 1)}
    page = (tmp_path / "study/study.html").read_text()
    assert page.count("<td class=num>cannot be trained</td>") == 1
    assert page.count("<td class=num>") == 18
    assert "cannot be trained</text>" in page, "in the legend of the plot"
    assert "Trainings that did not come to their end: 1 of 18. batch at 1: train.batch_size is 1, and the norm" in page


def test_epochs_are_counted_in_whole_numbers() -> None:
    drawn = curves([{"label": "batch", "accuracies": [0.5, 0.6], "failure": ""}])
    ticks = set(re.findall(r">(\d[\d.]*)</text>", drawn))
    assert ticks == {"1", "2"}


def test_a_line_of_the_plot_is_broken_where_nothing_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def errorbar(_: Axes, places: list[float], means: list[float], **__: object) -> None:
        drawn.append((places, means))

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    runs = made("batches", {("batch", 1.0): [[], []], ("batch", 2.0): [[0.5], []]})
    sweep([dataclasses.asdict(run) for run in runs], "batch size")
    ((places, means),) = drawn
    assert places == [1.0, 2.0]
    assert math.isnan(means[0])
    assert means[1] == 0.25, "one that fails counts as 0 beside one that does not"


def test_processes_side_by_side_find_the_same(tmp_path: Path) -> None:
    found = [
        run_study(RECIPE, output=tmp_path / str(jobs), overrides=["train.epochs=1", "network.widths=[8]"],
                  experiments=["order"], seeds=2, device="cpu", jobs=jobs)
        for jobs in (1, 2)
    ]  # fmt: skip
    assert [run.accuracies for run in found[0].runs] == [run.accuracies for run in found[1].runs]


def test_a_folder_that_exists_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    with pytest.raises(DataError, match="exists"):
        run_study(RECIPE, output=tmp_path / "study")


def test_a_recipe_that_no_training_can_follow_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training of the study came to its end"):
        run_study(RECIPE, output=tmp_path / "s", overrides=["data.name=faces"], experiments=["order"], seeds=1, jobs=1)
    assert not list(tmp_path.iterdir())
