"""A process that trains is killed, ended and interrupted, and finds the disk full."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnfold.cli import main
from bnfold.training import train

SHORT = ["train.epochs=4", "network.widths=[4, 4]"]


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def command(recipe: Path, *arguments: object) -> list[str]:
    settings = [word for each in SHORT for word in ("--set", each)]
    return [sys.executable, "-m", "bnfold", "train", str(recipe), "--device", "cpu", *settings, *map(str, arguments)]


@pytest.mark.slow
def test_killed_at_random_points_a_run_still_ends_with_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    """kill -9, three times, each a little after the process has begun to write; then it is left alone."""
    whole = train(recipe, output=tmp_path / "whole", overrides=SHORT)
    chance = random.Random(5)
    folder, partial = tmp_path / "run", tmp_path / "run.partial"
    for _ in range(3):
        how = ("--resume", folder) if partial.exists() or folder.exists() else ("-o", folder)
        process = subprocess.Popen(command(recipe, *how), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not partial.exists():
            time.sleep(0.005)
        time.sleep(chance.random() * 0.15)
        process.kill()
        _, err = process.communicate()
        assert err == b""
        assert process.returncode in (-signal.SIGKILL, 0)
    assert weights(train(recipe, resume=folder, overrides=SHORT).path) == weights(whole.path)
    assert not partial.exists()


def test_the_signal_of_a_batch_system_leaves_the_snapshot_and_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(recipe, "--set", "train.epochs=100000", "-o", tmp_path / "run"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "run.partial" / "snapshot.safetensors").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("bnfold: interrupted; the snapshot of the last epoch stays, and `bnfold train ")
    assert f"--resume {tmp_path / 'run'}` goes on from it" in err
    assert [path.name for path in (tmp_path / "run.partial").iterdir()] == ["snapshot.safetensors"]
    assert not (tmp_path / "run").exists()


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_before_an_epoch_is_done_leaves_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnfold.training.loop.evaluate", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["train", str(recipe), "--device", "cpu", "-o", str(tmp_path / "run"), "--json"]) == 130
    out, err = capsys.readouterr()
    assert err == "bnfold: interrupted\n"
    assert json.loads(out) == {"error": "interrupted"}
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_sentence_repeats_what_was_set(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnfold.training.trainer.save_checkpoint", interrupt)
    words = ["train", str(recipe), "--device", "cpu", "--set", "train.epochs=1", "-o", str(tmp_path / "my run")]
    assert main(words) == 130
    again = capsys.readouterr().err.split("`")[1]
    assert shlex.split(again)[1:] == [
        "train",
        str(recipe),
        "--set=train.epochs=1",
        "--device=cpu",
        "--resume",
        str(tmp_path / "my run"),
    ]
    monkeypatch.undo()
    assert main([*shlex.split(again)[1:], "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "my run"))


LIMITED = """
import resource, sys
from bnfold.cli import main
import bnfold.training.trainer as trainer

write = trainer.write_snapshot
def limited(path, run, data):
    if len(run.history) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    write(path, run, data)
trainer.write_snapshot = limited
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(recipe: Path, tmp_path: Path) -> None:
    whole = train(recipe, output=tmp_path / "whole", overrides=["train.epochs=3"])
    words = ["train", recipe, "--device", "cpu", "--set", "train.epochs=3", "-o", tmp_path / "run"]
    command = [sys.executable, "-c", LIMITED, *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == 1
    assert "cannot be written" in ran.stderr
    assert "the snapshot of the last epoch stays" in ran.stderr
    assert [path.name for path in (tmp_path / "run.partial").iterdir()] == ["snapshot.safetensors"]
    made = train(recipe, resume=tmp_path / "run", overrides=["train.epochs=3"])
    assert (made.path / "weights.safetensors").read_bytes() == (whole.path / "weights.safetensors").read_bytes()
