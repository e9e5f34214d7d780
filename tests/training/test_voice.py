"""Who says why a training of several processes ended. They meet at a real store, as torchrun gives them one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from bnfold.errors import DataError
from bnfold.training.distributed import LeftAlone, command_words
from bnfold.training.voice import is_said_elsewhere


@pytest.fixture
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        "WORLD_SIZE": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("bnfold.training.voice._SECONDS", 0.0)
    yield
    del store


@pytest.mark.usefixtures("under_torchrun")
def test_the_same_sentence_is_said_once() -> None:
    assert [is_said_elsewhere(DataError("no such recipe")) for _ in range(3)] == [False, True, True]


@pytest.mark.usefixtures("under_torchrun")
def test_a_failure_of_one_process_is_said_by_it_and_the_others_follow_silently() -> None:
    assert not is_said_elsewhere(DataError("the share of process 1 does not fit"))
    assert not is_said_elsewhere(DataError("the share of process 2 does not fit"))
    assert is_said_elsewhere(LeftAlone("the exchange failed"))
    assert is_said_elsewhere(KeyboardInterrupt("interrupted"))


@pytest.mark.usefixtures("under_torchrun")
@pytest.mark.parametrize("problem", [LeftAlone("the exchange failed"), KeyboardInterrupt("interrupted")])
def test_that_others_are_gone_is_said_where_nobody_said_more(problem: DataError | KeyboardInterrupt) -> None:
    assert [is_said_elsewhere(problem) for _ in range(2)] == [False, True]


@pytest.mark.usefixtures("under_torchrun")
def test_after_a_restart_by_torchrun_it_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_said_elsewhere(DataError("full disk"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not is_said_elsewhere(DataError("full disk"))


@pytest.mark.usefixtures("under_torchrun")
@pytest.mark.parametrize(
    ("name", "value"), [("WORLD_SIZE", "1"), ("TORCHELASTIC_USE_AGENT_STORE", "False"), ("MASTER_PORT", "none")]
)
def test_where_there_is_nowhere_to_meet_every_process_speaks(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert [is_said_elsewhere(DataError("no such recipe")) for _ in range(2)] == [False, False]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "bnfold"),
        ({"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4"}, "torchrun --standalone --nproc-per-node=4 -m bnfold"),
        (
            {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"},
            "torchrun --nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT --nproc-per-node=4 -m bnfold",
        ),
    ],
)
def test_the_command_starts_as_many_processes(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert " ".join(command_words()) == expected
