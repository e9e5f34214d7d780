"""Two processes train what one would."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chosen_ports import choose_port
from logged_runs import only_run
from safetensors.torch import load_file
from torch import nn

import bnfold
from bnfold.errors import DataError
from bnfold.training import load_checkpoint, load_recipe, train
from bnfold.training.distributed import ALONE, Group, PooledBatchNorm, processes
from bnfold.training.loop import batch_slices
from bnfold.training.memory import does_not_fit
from bnfold.training.networks import build_network
from bnfold.training.networks.batch_renorm import BatchRenorm
from bnfold.training.networks.handwritten import HandwrittenBatchNorm

CPU = torch.device("cpu")
PATIENCE = 300.0  # seconds in which processes import torch, meet and train a little, on a machine with much else to do
MEANT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
# 1,438 samples: batches of an odd size, and a last one of one sample.
FEW = ["train.batch_size=479", "train.epochs=2", "train.ema=0.5", "augmentation.flip=true"]

# The part of the gradient that a whole batch has for a process, and what its norms keep, for unequal shares.
WORKER = """
import sys
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from bnfold.training.distributed import Group
from bnfold.training.networks.batch_renorm import BatchRenorm
from bnfold.training.networks.handwritten import HandwrittenBatchNorm

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
given, made = load_file(f"{folder}/given.safetensors"), {}
kinds = {"flat": nn.BatchNorm1d, "picture": nn.BatchNorm2d, "far": nn.BatchNorm1d, "handwritten": HandwrittenBatchNorm,
         "renorm": BatchRenorm}
for name, kind in kinds.items():
    x = given[f"{name}/x"].split([5, 2])[rank].clone().requires_grad_()
    (norm,) = Group(rank, 2).synchronised(nn.Sequential(kind(3)), torch.device("cpu"))
    norm.running_mean.fill_(0.2)
    norm.running_var.fill_(2.0)
    norm.num_batches_tracked.fill_(500)
    y = norm(x)
    (y * given[f"{name}/g"].split([5, 2])[rank]).sum().backward()
    made |= {f"{name}/y": y.detach(), f"{name}/x": x.grad, f"{name}/gamma": norm.weight.grad,
             f"{name}/beta": norm.bias.grad, f"{name}/mean": norm.running_mean, f"{name}/var": norm.running_var}
save_file(made, f"{folder}/made-{rank}.safetensors")
dist.destroy_process_group()
"""


TELLER = """
import sys
import torch
import torch.distributed as dist
from bnfold.training.distributed import Group

dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meeting", rank=int(sys.argv[1]), world_size=2)
mine = torch.tensor([0.1, -3e-39, float(sys.argv[1])])
assert torch.equal(Group(int(sys.argv[1]), 2).of_first(mine), torch.tensor([0.1, -3e-39, 0.0]))
dist.destroy_process_group()
"""


def near(found: torch.Tensor, expected: torch.Tensor, bound: float) -> bool:
    """Within a bound, relative to the largest."""
    return float((found.double() - expected.double()).abs().max()) <= bound * max(1.0, float(expected.abs().max()))


def test_two_norms_of_a_part_each_are_one_of_the_whole(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    x = {"flat": torch.randn(7, 3), "picture": torch.randn(7, 3, 4, 5) * 3 + 1, "far": torch.randn(7, 3) * 0.01 + 100}
    x |= {"handwritten": torch.randn(7, 3, 4) + 2, "renorm": torch.randn(7, 3, 4, 5) * 3 + 1}
    kinds = {"handwritten": HandwrittenBatchNorm, "renorm": BatchRenorm}
    given = {f"{name}/x": each for name, each in x.items()}
    given |= {f"{name}/g": torch.randn_like(each) for name, each in x.items()}
    save_file(given, tmp_path / "given.safetensors")
    command = [sys.executable, "-c", WORKER]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=os.environ | MEANT) for rank in (0, 1)]
    try:
        assert [each.wait(PATIENCE) for each in running] == [0, 0]
    finally:
        end(running)
    first, second = (load_file(tmp_path / f"made-{rank}.safetensors") for rank in (0, 1))
    for name, whole in x.items():
        norm = kinds.get(name, nn.BatchNorm2d if whole.ndim == 4 else nn.BatchNorm1d)(3).double()
        norm.running_mean.fill_(0.2)
        norm.running_var.fill_(2.0)
        norm.num_batches_tracked.fill_(500)
        wanted = whole.double().requires_grad_()
        y = norm(wanted)
        (y * given[f"{name}/g"]).sum().backward()
        # At a mean of 100 the input itself is rounded to 7.6e-6, which the narrow spread of 0.01 makes 1e-3 of it.
        bound = 2e-1 if name == "far" else 2e-5
        for key, expected in (("y", y), ("x", wanted.grad)):
            both = torch.cat([first[f"{name}/{key}"], second[f"{name}/{key}"]])
            assert near(both, expected.detach(), bound)
        for key, expected in (("gamma", norm.weight.grad), ("beta", norm.bias.grad)):
            both = first[f"{name}/{key}"] + second[f"{name}/{key}"]
            assert near(both, expected, bound)
        for made in (first, second):
            for key, expected in (("mean", norm.running_mean), ("var", norm.running_var)):
                assert near(made[f"{name}/{key}"], expected, 1e-6)


def test_all_processes_have_the_numbers_of_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TELLER]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=os.environ | MEANT) for rank in (0, 1)]
    try:
        assert [each.wait(PATIENCE) for each in running] == [0, 0]
    finally:
        end(running)


def torchrun_command(*arguments: str) -> list[str]:
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    return [sys.executable, "-m", "torch.distributed.run", *meeting, "-m", "bnfold", "train", *arguments]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = torchrun_command(*arguments)
    return subprocess.run(command, env=os.environ | MEANT, capture_output=True, text=True, timeout=PATIENCE)


def test_two_processes_train_the_network_of_one(recipe: Path, tmp_path: Path) -> None:
    sets = [part for each in FEW for part in ("--set", each)]
    store = (tmp_path / "store").as_uri()
    ran = torchrun(str(recipe), "--device", "cpu", "-o", str(tmp_path / "two"), "--mlflow", store, *sets)
    assert ran.returncode == 0, ran.stderr
    logged = only_run(store)
    assert (logged.info.status, logged.data.tags["processes"]) == ("FINISHED", "2")
    assert ran.stdout.count("held out accuracy") == 1, "one of them says what came of it"
    alone = train(recipe, output=tmp_path / "one", overrides=FEW, device="cpu")
    made = load_checkpoint(tmp_path / "two")
    one, two = (load_file(each.path / "weights.safetensors") for each in (alone, made))
    assert one.keys() == two.keys()
    for name in one:
        assert near(two[name], one[name], 1e-5), name
    rows = [list(csv.reader((each.path / "history.csv").read_text().splitlines())) for each in (alone, made)]
    for mine, theirs in zip(*(table[1:] for table in rows), strict=True):
        assert [float(x) for x in mine[:-1]] == pytest.approx([float(x) for x in theirs[:-1]], rel=1e-4)
    norms = [list(csv.DictReader((each.path / "norms.csv").read_text().splitlines())) for each in (alone, made)]
    for mine, theirs in zip(*norms, strict=True):
        assert mine.pop("norm") == theirs.pop("norm")
        assert {key: float(x) for key, x in mine.items()} == pytest.approx(
            {key: float(x) for key, x in theirs.items()}, rel=1e-3
        )
    assert not list(tmp_path.glob("*.partial"))
    network = made.module()
    assert {type(each) for each in network.modules() if "Norm" in type(each).__name__} == {nn.BatchNorm2d}
    folded = bnfold.fold(network, made.example_inputs())
    assert not [each for each in folded.model.modules() if isinstance(each, nn.BatchNorm2d)]


def test_under_torchrun_what_all_would_say_is_said_once(recipe: Path, tmp_path: Path) -> None:
    hot = [word for each in ("learning_rate=1e6", "weight_decay=1e6") for word in ("--set", f"optimizer.{each}")]
    ran = torchrun(str(recipe), "--device", "cpu", "-o", str(tmp_path / "run"), *hot)
    assert ran.returncode != 0
    assert ran.stderr.count("expected a finite one") == 1, ran.stderr
    assert "the exchange with the other processes failed" not in ran.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupted_torchrun_says_once_how_it_goes_on(recipe: Path, tmp_path: Path) -> None:
    long = ["--device", "cpu", "--set", "train.epochs=100000", "-o", str(tmp_path / "run")]
    process = subprocess.Popen(
        torchrun_command(str(recipe), *long), env=os.environ | MEANT, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (tmp_path / "run.partial" / "snapshot.safetensors").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.terminate()  # not killed: then those that it started would go on
        process.communicate()
    assert said.count("bnfold: ") == 1, said
    assert "`torchrun --standalone --nproc-per-node=2 -m bnfold train " in said
    assert f"--resume {tmp_path / 'run'}` goes on from it" in said


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The two processes as torchrun starts them, without it: it would end one after the other has failed.

    However a test ends, they end with it.
    """
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(choose_port())}
    command = [sys.executable, "-m", "bnfold", "train", "--device", "cpu", *arguments]
    running: list[subprocess.Popen[str]] = []
    try:
        for rank in ("0", "1"):
            own = os.environ | MEANT | meeting | {"RANK": rank, "LOCAL_RANK": rank}
            running.append(subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True))
        yield running
    finally:
        end(running)


def end(running: Sequence[subprocess.Popen[Any]]) -> None:
    """Kill what still runs, and wait for it."""
    for process in running:
        process.kill()
    for process in running:
        process.communicate()


def test_no_process_outlives_a_test_that_fails(recipe: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="this one"),
        started(str(recipe), "-o", str(tmp_path / "run"), "--set", "train.epochs=100000") as running,
    ):
        assert not running, "this one"
    assert [process.returncode for process in running] == [-signal.SIGKILL] * 2


def test_a_loss_that_is_not_finite_ends_every_process(recipe: Path, tmp_path: Path) -> None:
    sets = ["--set", "optimizer.learning_rate=1e6", "--set", "optimizer.weight_decay=1e6"]
    with started(str(recipe), "-o", str(tmp_path / "run"), *sets) as running:
        for process in running:
            said = process.communicate(timeout=PATIENCE)[1]
            assert process.returncode == 2
            assert "expected a finite one" in said
            assert "lower optimizer.learning_rate" in said
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_ends_the_others_with_a_sentence(recipe: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "run.partial" / "snapshot.safetensors"
    with started(str(recipe), "-o", str(tmp_path / "run"), "--set", "train.epochs=100000") as (first, second):
        while not snapshot.exists() and first.poll() is None:
            time.sleep(0.05)
        second.kill()
        second.communicate(timeout=PATIENCE)
        said = first.communicate(timeout=PATIENCE)[1]
    assert first.returncode == 2, said
    assert "the exchange with the other processes failed" in said
    assert f"--resume {tmp_path / 'run'}" in said
    assert "Traceback" not in said
    assert snapshot.exists()


def test_on_cuda_the_norms_are_those_of_torch() -> None:
    network = build_network("plain_cnn", (1, 8, 8), 10, {"widths": [4, 4]})
    names = set(network.state_dict())
    converted = Group(0, 2).synchronised(network, torch.device("cuda"))
    assert len([each for each in converted.modules() if isinstance(each, nn.SyncBatchNorm)]) == 2
    assert set(converted.state_dict()) == names


def test_the_parts_of_a_batch_are_the_batch() -> None:
    x = torch.arange(7)
    assert ALONE.share(x) is x
    assert [Group(rank, 3).share(x).tolist() for rank in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
    sizes = [batch.stop - batch.start for batch in batch_slices(67, 32, Group(0, 4).smallest_batch)]
    assert sizes == [32, 35], "no process is left without a sample"


def test_a_norm_is_replaced_with_the_same_parameters() -> None:
    network = build_network("plain_cnn", (1, 8, 8), 10, {"widths": [4, 4]})
    before = dict(network.state_dict(keep_vars=True))
    group = Group(0, 2).synchronised(network, CPU)
    after = group.state_dict(keep_vars=True)
    assert any(isinstance(each, PooledBatchNorm) for each in group.modules())
    assert not any(isinstance(each, nn.BatchNorm2d) for each in group.modules())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    x = torch.randn(3, 1, 8, 8)
    plain = build_network("plain_cnn", (1, 8, 8), 10, {"widths": [4, 4]})
    plain.load_state_dict(network.state_dict())
    np.testing.assert_array_equal(group.eval()(x).detach(), plain.eval()(x).detach())


def test_a_norm_of_the_users_own_code_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean((0, 2, 3), keepdim=True)

    for norm in (Own(4), nn.InstanceNorm2d(4, track_running_stats=True)):
        with pytest.raises(DataError, match=r"the norm '1' \(\w+\) cannot train in 2 processes"):
            Group(0, 2).synchronised(nn.Sequential(nn.Conv2d(1, 4, 3), norm), CPU)
    for norm in (nn.SyncBatchNorm(4), nn.InstanceNorm2d(4)):
        Group(0, 2).synchronised(nn.Sequential(nn.Conv2d(1, 4, 3), norm), CPU)


@pytest.mark.parametrize(("device", "kind"), [("cpu", PooledBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_a_norm_in_two_places_is_one_norm_in_both(device: str, kind: type) -> None:
    norm = nn.BatchNorm2d(4)
    network = Group(0, 2).synchronised(nn.Sequential(norm, nn.ReLU(), norm, nn.Sequential(norm)), torch.device(device))
    assert type(network[0]) is kind  # type: ignore[index]
    assert network[0] is network[2] is network[3][0]  # type: ignore[index]


OWN = """
from torch import nn

def make(shape, classes, width):
    norm = nn.BatchNorm2d(width)  # called twice, by one set of statistics
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3), norm, nn.ReLU(), nn.Conv2d(width, width, 3), norm, nn.Flatten(),
        nn.Linear(width * 16, classes),
    )
"""


def test_two_processes_train_a_network_of_ones_own_as_one_would(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "pairnets.py").write_text(OWN)
    own = tmp_path / "recipe.toml"
    own.write_text(
        recipe.read_text().replace('kind = "plain_cnn"\nwidths = [6, 8]', 'kind = "pairnets:make"\nwidth = 4')
    )
    sets = [part for each in FEW for part in ("--set", each)]
    ran = torchrun(str(own), "--device", "cpu", "-o", str(tmp_path / "two"), *sets)
    assert ran.returncode == 0, ran.stderr
    alone = train(own, output=tmp_path / "one", overrides=FEW, device="cpu")
    one, two = (load_file(folder / "weights.safetensors") for folder in (alone.path, tmp_path / "two"))
    assert one.keys() == two.keys()
    for name in one:
        assert near(two[name], one[name], 1e-5), name


@pytest.mark.parametrize(
    ("variables", "overrides", "message"),
    [
        ({"RANK": "one"}, [], "RANK is 'one', expected a whole number from 0"),
        ({"WORLD_SIZE": "0"}, [], "WORLD_SIZE is '0', expected a whole number from 1"),
        ({}, ["train.batch_size=2", "train.compile=false"], r"train\.batch_size is 2, of all 3 processes"),
        ({}, ["train.compile=true"], r"are for one process, and 3 were started"),
        ({"MASTER_PORT": "no port"}, [], "process 0 of 3 cannot join the others"),
    ],
)
def test_processes_that_cannot_train_together_say_why(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], overrides: list[str], message: str
) -> None:
    meeting = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (meeting | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=message), processes(load_recipe(recipe, overrides), CPU):
        pass


def test_one_process_under_torchrun_is_alone(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with processes(load_recipe(recipe), CPU) as group:
        assert group == ALONE


def test_more_processes_than_devices_are_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    message = "1 CUDA devices for process 1"
    with pytest.raises(DataError, match=message), processes(load_recipe(recipe), torch.device("cuda")):
        pass


def test_a_share_that_does_not_fit_is_said_without_trying_smaller_ones() -> None:
    def attempt(_size: int) -> None:
        raise AssertionError("the other processes would not try along")

    assert "its share for process 1 of 2 does not fit" in str(does_not_fit(64, CPU, attempt, 2, Group(1, 2)))
