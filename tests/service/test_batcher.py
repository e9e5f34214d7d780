from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Busy, Disconnected, Expired, ModelFault
from service.queueing.backlog import Array, Backlog, Outputs
from service.queueing.batcher import Batcher

POISON = -1.0


class Doubler:
    """2x, and a record of what it was called with. A closed gate keeps it inside `run`."""

    def __init__(self, label: str = "doubler/1", *, batchable: bool = True) -> None:
        self.label = label
        self.batchable = batchable
        self.backlog = Backlog()
        self.calls: list[Array] = []
        self.counted: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        with self._lock:
            self.calls.append(inputs["x"])
        self.entered.release()
        assert self.gate.wait(60)
        if (inputs["x"] == POISON).any():
            raise ModelFault("poison")
        return {"y": inputs["x"] * 2}

    def count_batch(self, rows: int, joining: float, running: float, splitting: float, requests: int) -> None:
        assert min(joining, running, splitting) >= 0
        assert 1 <= requests <= rows
        self.counted.append(rows)

    @property
    def rows_run(self) -> list[float]:
        return [float(value) for call in self.calls for value in call.reshape(len(call), -1)[:, 0]]


def with_batcher(test: Callable[[Batcher], Awaitable[None]], **options: int) -> None:
    async def run() -> None:
        batcher = Batcher(**{"workers": 2, "max_batch_rows": 8, "max_queue_rows": 64, **options})
        batcher.start()
        try:
            await asyncio.wait_for(test(batcher), 60)
        finally:
            await batcher.stop()

    asyncio.run(run())


def rows(start: float, count: int = 1, width: int = 3) -> dict[str, Array]:
    return {"x": np.arange(start, start + count, dtype=np.float64)[:, None] + np.zeros((1, width))}


async def infer(batcher: Batcher, model: Any, inputs: dict[str, Array], timeout: float = 60, **more: Any) -> Array:
    outputs, queued = await batcher.infer(model, inputs, len(inputs["x"]), timeout=timeout, **more)
    assert queued >= 0
    return outputs["y"]


async def entered(model: Doubler) -> None:
    """Wait until a worker is inside the model."""
    await asyncio.to_thread(model.entered.acquire, True, 60)


_REQUEST = st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3]), st.booleans(), st.integers(0, 3))


@settings(max_examples=60)
@given(
    st.lists(_REQUEST, min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 12),
    st.lists(st.integers(0, 39), max_size=10),
)
def test_each_caller_gets_exactly_its_own_rows(
    requests: list[tuple[int, int, bool, int]], workers: int, most: int, leaving: list[int]
):
    models = [Doubler("a/1"), Doubler("b/1", batchable=False)]

    async def one(batcher: Batcher, at: int, count: int, width: int, second: bool, wait: int) -> None:
        for _ in range(wait):
            await asyncio.sleep(0)
        inputs = rows(1000.0 * at, count, width)
        assert np.array_equal(await infer(batcher, models[second], inputs), inputs["x"] * 2)

    async def test(batcher: Batcher) -> None:
        tasks = [asyncio.create_task(one(batcher, at, *request)) for at, request in enumerate(requests)]
        await asyncio.sleep(0)
        gone = [tasks[at] for at in set(leaving) if at < len(tasks)]
        for task in gone:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for task, result in zip(tasks, results, strict=True):
            assert result is None or (task in gone and isinstance(result, asyncio.CancelledError)), result
        assert batcher.waiting_rows(models[0]) == batcher.waiting_rows(models[1]) == 0

    with_batcher(test, workers=workers, max_batch_rows=most, max_queue_rows=10_000)
    for model in models:
        assert len(model.rows_run) == len(set(model.rows_run)) == sum(model.counted)
        for call in model.calls:
            assert len(call) <= max(most, 5)
            if not model.batchable:
                assert len({int(value // 1000) for value in call[:, 0]}) == 1


def test_what_waits_is_run_together_within_the_row_limit():
    model = Doubler()

    async def test(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(infer(batcher, model, rows(0)))
        await entered(model)
        others = [asyncio.create_task(infer(batcher, model, rows(10.0 * at, 3))) for at in range(1, 6)]
        await asyncio.sleep(0)
        assert batcher.waiting_rows(model) == 15
        model.gate.set()
        await asyncio.gather(first, *others)

    with_batcher(test, workers=1)
    assert [len(call) for call in model.calls] == [1, 6, 6, 3]
    assert model.counted == [1, 6, 6, 3]


def test_shapes_never_mix_and_take_turns():
    model = Doubler()

    async def test(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(infer(batcher, model, rows(0)))
        await entered(model)
        others = [
            asyncio.create_task(infer(batcher, model, rows(10.0 * at, 4, width=2 + at % 2))) for at in range(1, 9)
        ]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *others)

    with_batcher(test, workers=1)
    assert [call.shape for call in model.calls] == [(1, 3), (8, 3), (8, 2), (8, 3), (8, 2)]


def test_a_request_above_the_batch_limit_runs_alone():
    model = Doubler()

    async def test(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(infer(batcher, model, rows(0)))
        await entered(model)
        others = [
            asyncio.create_task(infer(batcher, model, rows(100.0 * at, count))) for at, count in ((1, 20), (2, 1))
        ]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *others)

    with_batcher(test, workers=1)
    assert [len(call) for call in model.calls] == [1, 20, 1]


def test_a_full_queue_answers_at_once_and_only_for_its_model():
    model, other = Doubler("a/1"), Doubler("b/1")

    async def test(batcher: Batcher) -> None:
        model.gate.clear()
        running = [asyncio.create_task(infer(batcher, model, rows(0)))]
        await entered(model)
        running += [asyncio.create_task(infer(batcher, model, rows(10.0 * at, 5))) for at in range(1, 3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="10 rows wait for model a/1"):
            await infer(batcher, model, rows(100))
        waiting = asyncio.create_task(infer(batcher, other, rows(0)))
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(*running, waiting)
        assert np.array_equal(await infer(batcher, model, rows(100)), rows(100)["x"] * 2)

    with_batcher(test, workers=1, max_queue_rows=10)
    assert 100.0 in model.rows_run
    assert len(model.rows_run) == 12


@pytest.mark.parametrize("how", ["cancelled", "expired", "gone"])
def test_a_request_that_nobody_waits_for_never_reaches_the_runtime(how: str):
    model = Doubler()

    async def test(batcher: Batcher) -> None:
        left = asyncio.Event()
        model.gate.clear()
        first = asyncio.create_task(infer(batcher, model, rows(0)))
        await entered(model)
        options: dict[str, Any] = {"timeout": 0.01} if how == "expired" else {"gone": left.wait}
        unwanted = asyncio.create_task(infer(batcher, model, rows(10, 2), **options))
        wanted = asyncio.create_task(infer(batcher, model, rows(20, 2)))
        await asyncio.sleep(0)
        assert batcher.waiting_rows(model) == 4
        if how == "cancelled":
            unwanted.cancel()
        left.set()
        expected = {"cancelled": asyncio.CancelledError, "expired": Expired, "gone": Disconnected}[how]
        with pytest.raises(expected):
            await unwanted
        assert batcher.waiting_rows(model) == 2
        model.gate.set()
        await asyncio.gather(first, wanted)

    with_batcher(test, workers=1)
    assert sorted(model.rows_run) == [0, 20, 21]


def test_a_request_that_expires_inside_the_runtime_is_answered_and_its_worker_lives_on():
    model = Doubler()

    async def test(batcher: Batcher) -> None:
        model.gate.clear()
        with pytest.raises(Expired):
            await infer(batcher, model, rows(0), timeout=0.01)
        model.gate.set()
        assert (await infer(batcher, model, rows(5))).tolist() == [[10, 10, 10]]

    with_batcher(test, workers=1)


def test_one_bad_request_does_not_spoil_its_neighbours():
    model = Doubler()

    async def test(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(infer(batcher, model, rows(0)))
        await entered(model)
        tasks = [asyncio.create_task(infer(batcher, model, rows(start))) for start in (10, POISON, 20)]
        await asyncio.sleep(0)
        model.gate.set()
        good, bad, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        await first
        assert good.tolist() == [[20, 20, 20]]
        assert isinstance(bad, ModelFault)
        assert also_good.tolist() == [[40, 40, 40]]
        assert model.counted == [len(call) for call in model.calls] == [1, 3, 1, 1, 1]

    with_batcher(test, workers=1)


class Careless(Doubler):
    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        if len(inputs["x"]) > 2:
            return {"y": inputs["x"][:1]}
        if inputs["x"][0, 0] == 7:
            raise KeyError("a bug")
        return super().run(inputs)


def test_a_model_that_loses_rows_of_a_batch_is_caught():
    model = Careless()

    async def test(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(infer(batcher, model, rows(0)))
        await entered(model)
        tasks = [asyncio.create_task(infer(batcher, model, rows(10.0 * at))) for at in range(1, 5)]
        await asyncio.sleep(0)
        model.gate.set()
        found = await asyncio.gather(*tasks)
        await first
        assert [float(array[0, 0]) for array in found] == [20, 40, 60, 80]

    with_batcher(test, workers=1)


def test_an_unforeseen_error_is_a_fault_without_its_words(caplog: pytest.LogCaptureFixture):
    async def test(batcher: Batcher) -> None:
        with pytest.raises(ModelFault) as fault:
            await infer(batcher, Careless(), rows(7))
        assert "bug" not in str(fault.value)

    with_batcher(test)
    assert "a bug" in caplog.text


def test_a_batch_is_delivered_by_one_call_into_the_loop(monkeypatch: pytest.MonkeyPatch):
    model = Doubler()
    calls: list[int] = []

    async def test(batcher: Batcher) -> None:
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe
        model.gate.clear()
        first = asyncio.create_task(infer(batcher, model, rows(0)))
        await entered(model)
        tasks = [asyncio.create_task(infer(batcher, model, rows(float(at)))) for at in range(8)]
        await asyncio.sleep(0)

        def counted(callback: Any, *arguments: Any, **more: Any) -> Any:
            if threading.current_thread().name.startswith("bnfold-"):
                calls.append(len(arguments[0]))
            return original(callback, *arguments, **more)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        model.gate.set()
        await asyncio.gather(first, *tasks)

    with_batcher(test, workers=1)
    assert calls == [1, 8]


def test_workers_run_side_by_side():
    model = Doubler(batchable=False)

    async def test(batcher: Batcher) -> None:
        model.gate.clear()
        tasks = [asyncio.create_task(infer(batcher, model, rows(float(at)))) for at in range(3)]
        for _ in range(3):
            await entered(model)
        model.gate.set()
        await asyncio.gather(*tasks)

    with_batcher(test, workers=3)


def test_stop_finishes_what_is_queued_and_takes_nothing_more():
    model = Doubler()

    workers: set[threading.Thread] = set()

    async def test(batcher: Batcher) -> None:
        model.gate.clear()
        tasks = [asyncio.create_task(infer(batcher, model, rows(float(at), 5))) for at in range(6)]
        await entered(model)
        workers.update(batcher._threads)
        assert len(workers) == 3
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await infer(batcher, model, rows(0))
        model.gate.set()
        await asyncio.gather(*tasks, stopping)

    with_batcher(test, workers=3)
    assert len(model.rows_run) == 30
    assert not workers & set(threading.enumerate())
