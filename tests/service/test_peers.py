"""The sockets between workers: what they tell, and what becomes of one that is away, hangs, or talks nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.processes import peers as module
from service.processes.peers import Crew, Peers, describe_crew


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bnfold-") as made:  # paths of sockets are short
        yield Path(made)


def tell(worker: int) -> dict[str, Any]:
    return {"worker": worker, "ready": True, "models": ["m"] * 3, "gauges": {"worker": worker}}


def peers(folder: Path, worker: int, workers: int) -> Peers:
    return Peers(Crew(folder, worker, workers), lambda: tell(worker))


def test_each_worker_knows_the_others_and_their_gauges_stay_among_them(folder: Path):
    async def run() -> None:
        crew = [peers(folder, worker, 3) for worker in range(3)]
        for each in crew:
            await each.start()
        for worker, each in enumerate(crew):
            assert [state["worker"] for state in await each.others()] == [at for at in range(3) if at != worker]
            assert await each.all() == [tell(at) for at in range(3)]
        found = await describe_crew(crew[0])
        assert found == {"workers": [{"worker": at, "ready": True, "models": ["m"] * 3} for at in range(3)]}
        for each in crew:
            await each.stop()

    asyncio.run(run())


def test_a_process_on_its_own_has_no_workers(folder: Path):
    async def run() -> None:
        alone = Peers(None, lambda: tell(0))
        await alone.start()
        assert await alone.all() == await alone.others() == []
        assert await describe_crew(alone) == {}
        await alone.stop()

    asyncio.run(run())
    assert list(folder.iterdir()) == []


def test_one_that_is_away_hangs_or_talks_nonsense_is_not_ready(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.2)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff{not json\n")
        await writer.drain()
        writer.close()

    async def run() -> None:
        first = peers(folder, 0, 5)
        await first.start()
        servers = [await asyncio.start_unix_server(hang, first._crew.socket(2))]
        servers.append(await asyncio.start_unix_server(babble, first._crew.socket(3)))
        Path(first._crew.socket(4)).touch()  # what a killed worker leaves behind
        found = await first.all()
        assert found == [tell(0), *({"worker": at, "ready": False} for at in range(1, 5))]
        for server in servers:
            server.close()
        await first.stop()

    asyncio.run(run())


def test_one_that_did_not_answer_is_not_waited_for_as_long_the_next_time(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Otherwise every probe of a server with one hung worker takes a second, which is all that a probe has."""
    waits: list[tuple[str, float]] = []
    answers = [False, False, True, True]

    async def ask(path: str, patience: float) -> dict[str, Any] | None:
        waits.append((Path(path).name, patience))
        return tell(1) if answers.pop(0) else None

    async def run() -> None:
        monkeypatch.setattr(module, "_ask", ask)
        monkeypatch.setattr(module, "_MOMENT", -1.0)
        here = peers(folder, 0, 2)
        for _ in range(4):
            await here.others()

    asyncio.run(run())
    short, long = module._GLANCE, module._PATIENCE
    assert short < long
    assert waits == [("worker-1.sock", patience) for patience in (long, short, short, long)]


def test_a_worker_takes_the_place_of_one_that_was_killed(folder: Path):
    async def run() -> None:
        first, second, successor = peers(folder, 0, 2), peers(folder, 1, 2), peers(folder, 1, 2)
        for each in (first, second, successor):
            await each.start()
        assert [state["worker"] for state in await first.others()] == [1]
        for each in (first, second, successor):
            await each.stop()

    asyncio.run(run())


def test_many_who_ask_at_once_make_one_question(folder: Path):
    asked = 0

    def count() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return tell(1)

    async def run() -> None:
        first, second = peers(folder, 0, 2), Peers(Crew(folder, 1, 2), count)
        for each in (first, second):
            await each.start()
        found = await asyncio.gather(*(first.others() for _ in range(100)))
        assert found == [[tell(1)]] * 100
        for each in (first, second):
            await each.stop()

    asyncio.run(run())
    assert asked == 1


@pytest.mark.parametrize("sent", [b"", b"\n", b'{"ask":"keys"}\n', b"x" * 10**6, b'{"ask":"state"}'])
def test_what_is_no_question_gets_no_answer(folder: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.2)

    async def run() -> None:
        first = peers(folder, 0, 1)
        await first.start()
        reader, writer = await asyncio.open_unix_connection(first._crew.socket(0))
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        await first.stop()

    asyncio.run(run())
