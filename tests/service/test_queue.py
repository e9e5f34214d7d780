"""Priorities, fair turns, admission, deadlines and delay of the real queue on a real event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Busy, Expired, ModelFault
from service.queueing.backlog import Array, Backlog, Outputs
from service.queueing.batcher import Batcher

POISON = -1.0


class Recorder:
    """2x, with a record of its calls in order. seconds: that a row takes. A closed gate keeps it inside `run`."""

    def __init__(self, label: str = "recorder/1", *, batchable: bool = True, seconds: float = 0.0) -> None:
        self.label = label
        self.batchable = batchable
        self.backlog = Backlog()
        self.calls: list[list[float]] = []
        self.runs: list[tuple[int, int]] = []
        self.threads: list[str] = []
        self.seconds = seconds
        self.wait: Callable[[float], None] = time.sleep
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        first = inputs["x"][:, 0]
        with self._lock:
            self.calls.append([float(value) for value in first])
            self.threads.append(threading.current_thread().name)
        self.entered.release()
        assert self.gate.wait(60)
        self.wait(self.seconds * len(first))
        if (first == POISON).any():
            raise ModelFault("poison")
        return {"y": inputs["x"] * 2}

    def count_batch(self, rows: int, joining: float, running: float, splitting: float, requests: int) -> None:
        assert min(joining, running, splitting) >= 0
        self.runs.append((rows, requests))

    @property
    def rows_run(self) -> list[float]:
        return [value for call in self.calls for value in call]


def with_batcher(test: Callable[[Batcher], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        batcher = Batcher(**{"workers": 1, "max_batch_rows": 8, "max_queue_rows": 64, **options})
        batcher.start()
        try:
            await asyncio.wait_for(test(batcher), 60)
        finally:
            await batcher.stop()

    asyncio.run(run())


def rows(start: float, count: int = 1, width: int = 2) -> dict[str, Array]:
    return {"x": np.arange(start, start + count, dtype=np.float64)[:, None] + np.zeros((1, width))}


async def infer(batcher: Batcher, model: Any, inputs: dict[str, Array], timeout: float = 60, **more: Any) -> Array:
    outputs, _ = await batcher.infer(model, inputs, len(inputs["x"]), timeout=timeout, **more)
    return outputs["y"]


async def blocked(batcher: Batcher, model: Recorder) -> asyncio.Task[Array]:
    """A worker inside the model, until its gate is opened."""
    model.gate.clear()
    while model.entered.acquire(blocking=False):  # left over from earlier calls
        pass
    first = asyncio.create_task(infer(batcher, model, rows(0)))
    await asyncio.to_thread(model.entered.acquire, True, 60)
    return first


def queue(batcher: Batcher, model: Recorder, start: float, **more: Any) -> asyncio.Task[Array]:
    return asyncio.create_task(infer(batcher, model, rows(start), **more))


def known_to_take(model: Recorder, seconds: float) -> None:
    """As if so many seconds a row had been measured, of rows two wide."""
    model.backlog.measure(1, seconds, ((2,),))


# ----------------------------------------------------------------------------------------------------------- priority


def test_a_lower_number_goes_first_and_zero_is_the_middle():
    model = Recorder(batchable=False)

    async def test(batcher: Batcher) -> None:
        first = await blocked(batcher, model)
        tasks = [queue(batcher, model, start, priority=level) for start, level in ((1, 10), (2, 0), (3, 1), (4, 4))]
        tasks.append(queue(batcher, model, 5, priority=99))  # there is no such level: the default
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *tasks)

    with_batcher(test)
    assert model.rows_run == [0, 3, 4, 2, 5, 1]


def test_a_batch_is_filled_from_lower_levels():
    model = Recorder()

    async def test(batcher: Batcher) -> None:
        first = await blocked(batcher, model)
        tasks = [queue(batcher, model, start, priority=level) for start, level in ((1, 9), (2, 1), (3, 5))]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *tasks)

    with_batcher(test)
    assert model.calls == [[0], [2, 3, 1]]


def test_urgent_requests_do_not_starve_the_others():
    model = Recorder(batchable=False)

    async def test(batcher: Batcher) -> None:
        first = await blocked(batcher, model)
        patient = queue(batcher, model, 1000, priority=10)
        urgent = [queue(batcher, model, start, priority=1) for start in range(1, 41)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, patient, *urgent)

    with_batcher(test)
    assert model.rows_run.index(1000) == 16


# ----------------------------------------------------------------------------------------------------------- fairness


def test_a_greedy_model_does_not_starve_another():
    greedy, modest = Recorder("greedy/1", seconds=2e-3), Recorder("modest/1", seconds=2e-3)
    order: list[str] = []

    async def note(name: str, task: asyncio.Task[Array]) -> None:
        await task
        order.append(name)

    async def test(batcher: Batcher) -> None:
        for model in (greedy, modest):  # so that both have their measure
            await infer(batcher, model, rows(0))
        first = await blocked(batcher, greedy)
        notes = [note("greedy", queue(batcher, greedy, start)) for start in range(1, 49)]
        notes += [note("modest", queue(batcher, modest, start)) for start in range(1, 5)]
        await asyncio.sleep(0)
        greedy.gate.set()
        await asyncio.gather(first, *notes)

    with_batcher(test)
    assert order.index("modest") <= 16  # of 48: after two batches of the other at most


class Clock:
    """For the batcher, time that passes in the models alone."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.now = time.perf_counter()

    def perf_counter(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_turns_go_by_time_and_not_by_batches(monkeypatch: pytest.MonkeyPatch):
    slow, fast = Recorder("slow/1", seconds=8e-3), Recorder("fast/1", seconds=1e-3)
    calls: list[str] = []
    clock = Clock()
    monkeypatch.setattr("service.queueing.batcher.time", clock)
    for model in (slow, fast):
        model.calls = _Tee(calls, model.label)  # type: ignore[assignment]
        model.wait = clock.wait

    async def test(batcher: Batcher) -> None:
        for model in (slow, fast):
            for start in range(3):
                await infer(batcher, model, rows(start))
        first = await blocked(batcher, slow)
        del calls[:]
        tasks = [queue(batcher, model, start) for start in range(1, 21) for model in (slow, fast)]
        await asyncio.sleep(0)
        slow.gate.set()
        await asyncio.gather(first, *tasks)

    with_batcher(test, max_batch_rows=1)
    until_slow_has_run_five_times = list(itertools.takewhile(lambda n: n < 5, itertools.accumulate(
        call == "slow/1" for call in calls
    )))  # fmt: skip
    assert len(until_slow_has_run_five_times) >= 15  # turns by batches would make it ten


class _Tee(list[list[float]]):
    def __init__(self, calls: list[str], label: str) -> None:
        super().__init__()
        self._names, self._label = calls, label

    def append(self, call: list[float]) -> None:
        self._names.append(self._label)
        super().append(call)


# ---------------------------------------------------------------------------------------------- deadlines, admission


def test_a_ticket_that_is_found_too_late_by_a_worker_never_reaches_the_runtime():
    model = Recorder()

    async def test(batcher: Batcher) -> None:
        first = await blocked(batcher, model)
        late, wanted = queue(batcher, model, 10, timeout=0.02), queue(batcher, model, 20)
        await asyncio.sleep(0)
        time.sleep(0.05)
        model.gate.set()
        assert model.entered.acquire(timeout=60)  # the loop is held, so that its own look at deadlines cannot be first
        with pytest.raises(Expired):
            await late
        await asyncio.gather(first, wanted)

    with_batcher(test)
    assert model.rows_run == [0, 20]


def test_what_would_come_too_late_is_refused_at_once_with_an_honest_wait():
    model = Recorder()
    known_to_take(model, 0.05)

    async def test(batcher: Batcher) -> None:
        first = await blocked(batcher, model)
        waiting = [queue(batcher, model, start) for start in range(1, 41)]
        await asyncio.sleep(0)
        began = len(model.calls)
        with pytest.raises(Busy, match="is to be expected in") as refused:
            await infer(batcher, model, rows(99), timeout=0.5)
        assert len(model.calls) == began
        assert 1 <= refused.value.retry_after <= 5  # some 2 s of work wait
        patient = queue(batcher, model, 100, timeout=30)
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, patient, *waiting)

    with_batcher(test)
    assert 99.0 not in model.rows_run
    assert 100.0 in model.rows_run


def test_a_slow_first_call_does_not_refuse_for_ever():
    model = Recorder()
    known_to_take(model, 30.0)

    async def test(batcher: Batcher) -> None:
        for start in range(1, 40):  # nothing waits, so each is taken, whatever the measure says
            await infer(batcher, model, rows(start), timeout=20.0)

    with_batcher(test)
    backlog = Backlog()
    for seconds in (0.3, *[0.0] * 39):
        backlog.measure(1, seconds, ((2,),))
    assert backlog.pace < 0.01


def test_an_urgent_request_is_not_refused_for_what_waits_behind_it():
    model = Recorder()
    known_to_take(model, 0.5)

    async def test(batcher: Batcher) -> None:
        first = await blocked(batcher, model)
        waiting = [queue(batcher, model, start, priority=9) for start in range(1, 41)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await infer(batcher, model, rows(98), timeout=10.0, priority=9)
        urgent = queue(batcher, model, 99, timeout=10.0, priority=1)
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, urgent, *waiting)

    with_batcher(test)
    assert model.rows_run[:2] == [0, 99]


# -------------------------------------------------------------------------------------------------------- max_delay


def test_a_delay_gathers_what_comes_and_a_full_batch_ends_it():
    model = Recorder()

    async def test(batcher: Batcher) -> None:
        async def one(start: float) -> None:
            await asyncio.sleep(0.001 * start)
            await infer(batcher, model, rows(start))

        await asyncio.gather(*[one(start) for start in range(4)])
        assert model.calls == [[0, 1, 2, 3]]  # ended by the fourth: the delay alone would be a minute

    with_batcher(test, workers=2, max_batch_rows=4, max_delay=60.0)


def test_a_delay_ends_by_itself_and_with_the_server():
    model = Recorder()

    async def brief(batcher: Batcher) -> None:
        assert (await infer(batcher, model, rows(3))).tolist() == [[6, 6]]

    with_batcher(brief, max_delay=0.01)

    async def stopped(batcher: Batcher) -> None:
        task = queue(batcher, model, 4)
        await asyncio.sleep(0)
        assert batcher.waiting_rows(model) == 1
        await batcher.stop()
        assert (await task).tolist() == [[8, 8]]

    with_batcher(stopped, max_delay=60.0)


# ------------------------------------------------------------------------------------------ short batches on the loop

LOOP = threading.main_thread().name


def test_what_is_known_to_be_short_runs_on_the_loop_and_together():
    model = Recorder()

    async def test(batcher: Batcher) -> None:
        await infer(batcher, model, rows(0))
        known_to_take(model, 1e-4)
        for _ in range(60):  # whatever the first call took is forgotten
            known_to_take(model, 1e-4)
        found = await asyncio.gather(*[queue(batcher, model, start) for start in (1, 2, 3)])
        assert [array[0, 0] for array in found] == [2, 4, 6]

    with_batcher(test, workers=2, max_inline=0.05)
    assert model.calls == [[0], [1, 2, 3]]
    assert model.threads[0].startswith("bnfold-")
    assert model.threads[1] == LOOP


@pytest.mark.parametrize(
    ("count", "width", "pace", "limit"),
    [(1, 2, 1e-4, 0.0), (1, 2, 0.2, 0.1), (1, 3, 1e-4, 0.1), (8, 2, 0.02, 0.1)],
    ids=["never", "too long a row", "another shape", "too many rows"],
)
def test_what_is_not_known_to_be_short_runs_in_a_thread(count: int, width: int, pace: float, limit: float):
    model = Recorder()
    known_to_take(model, pace)

    async def test(batcher: Batcher) -> None:
        assert (await infer(batcher, model, rows(1, count, width))).tolist() == (
            rows(1, count, width)["x"] * 2
        ).tolist()

    with_batcher(test, workers=2, max_inline=limit)
    assert [name.partition("-")[0] for name in model.threads] == ["bnfold"]


def test_priorities_are_left_to_the_threads():
    model = Recorder()
    known_to_take(model, 1e-4)

    async def test(batcher: Batcher) -> None:
        await asyncio.gather(queue(batcher, model, 1), queue(batcher, model, 2, priority=1))

    with_batcher(test, max_inline=0.1)
    assert model.threads == ["bnfold-0"] * len(model.threads)
    assert sorted(model.rows_run) == [1, 2]


def test_beyond_a_short_batch_a_worker_helps():
    model = Recorder()
    known_to_take(model, 0.03)

    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*[queue(batcher, model, start) for start in range(12)])

    with_batcher(test, workers=1, max_inline=0.1, max_batch_rows=64)
    assert sorted(model.rows_run) == list(range(12))
    assert {name == LOOP for name in model.threads} == {True, False}
    on_loop = [call for call, name in zip(model.calls, model.threads, strict=True) if name == LOOP]
    assert max(len(call) for call in on_loop[:1]) <= 3


def test_a_short_model_does_not_wait_for_a_long_one():
    short, long = Recorder("short/1"), Recorder("long/1")
    known_to_take(short, 1e-4)

    async def test(batcher: Batcher) -> None:
        first = await blocked(batcher, long)
        assert (await infer(batcher, short, rows(7), 10)).tolist() == [[14, 14]]
        long.gate.set()
        await first

    with_batcher(test, workers=1, max_inline=0.1)
    assert short.threads == [LOOP]


def test_a_large_shape_is_not_taken_for_short_because_small_ones_were():
    model = Recorder()
    for _ in range(12):
        model.backlog.measure(1024, 0.01, ((2,),))
    model.backlog.measure(1, 0.4, ((9,),))

    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*[infer(batcher, model, rows(start, 1, 9)) for start in range(3)])

    with_batcher(test, max_inline=0.002)
    assert LOOP not in model.threads


def test_a_request_that_is_too_late_lets_no_long_one_through_behind_it():
    model = Recorder()
    known_to_take(model, 0.01)

    async def test(batcher: Batcher) -> None:
        late = queue(batcher, model, 1, timeout=1e-9)
        long = asyncio.create_task(infer(batcher, model, rows(100, 64)))
        with pytest.raises(Expired):
            await late
        await long

    with_batcher(test, max_inline=0.05, max_batch_rows=64, max_queue_rows=999)
    assert [name for call, name in zip(model.calls, model.threads, strict=True) if len(call) > 5] == ["bnfold-0"]


class Slow(Recorder):
    """Takes two hundredths of a second of the loop's life, so that the loop is never late for the next turn."""

    loop: asyncio.AbstractEventLoop

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        assert threading.current_thread().name != LOOP
        over = threading.Event()
        self.loop.call_soon_threadsafe(self.loop.call_later, 0.02, over.set)
        assert over.wait(60)
        return super().run(inputs)


def test_batches_on_the_loop_take_no_turns_of_the_workers():
    flood, modest = Recorder("flood/1", seconds=1e-4), Slow("modest/1")
    busy = [Slow(f"busy/{number}") for number in range(4)]

    async def test(batcher: Batcher) -> None:
        Slow.loop = asyncio.get_running_loop()

        async def keep(model: Recorder, pause: float) -> None:
            while sum(len(each.calls) for each in busy) < 60:
                await infer(batcher, model, rows(1))
                await asyncio.sleep(pause)

        known_to_take(flood, 1e-4)
        known_to_take(modest, 0.02)
        others = [keep(model, 0) for model in (flood, *busy) for _ in range(4)]
        await asyncio.gather(*others, keep(modest, 0.01))

    with_batcher(test, workers=1, max_batch_rows=1, max_inline=0.01)
    fair = sum(len(model.calls) for model in (modest, *busy)) / 5
    assert len(modest.calls) >= fair / 3


def test_what_fails_at_once_is_no_measure_of_what_does_not():
    model = Recorder()

    async def test(batcher: Batcher) -> None:
        for _ in range(20):
            with pytest.raises(ModelFault):
                await infer(batcher, model, {"x": np.full((1, 2), POISON)})
        await infer(batcher, model, rows(1))

    with_batcher(test, max_inline=1.0)
    assert LOOP not in model.threads


def test_who_waits_behind_more_than_one_short_batch_is_not_taken_at_once():
    model = Recorder()
    known_to_take(model, 0.01)

    async def test(batcher: Batcher) -> None:
        done: list[Any] = []
        tickets = [
            batcher.submit(model, rows(start), 1, 60, 0, lambda _, answer: done.append(answer)) for start in range(6)
        ]
        assert [ticket.immediate for ticket in tickets] == [True, True, True, False, False, False]
        while len(done) < 6:
            await asyncio.sleep(0.001)

    with_batcher(test, max_inline=0.035)


def test_a_fault_of_the_batcher_itself_does_not_end_the_short_way(monkeypatch: pytest.MonkeyPatch):
    model = Recorder()
    known_to_take(model, 1e-4)
    broken = iter([True])

    def count(*_: Any) -> None:
        if next(broken, False):
            raise MemoryError

    monkeypatch.setattr(model, "count_batch", count)

    async def test(batcher: Batcher) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        first = queue(batcher, model, 1, timeout=0.2)
        with pytest.raises(Expired):
            await first
        assert (await infer(batcher, model, rows(5), 5)).tolist() == [[10, 10]]

    with_batcher(test, max_inline=0.1)


def test_a_stop_runs_what_waits_for_the_loop():
    model = Recorder()
    known_to_take(model, 1e-4)

    async def test(batcher: Batcher) -> None:
        tasks = [queue(batcher, model, start) for start in (1, 2)]
        await asyncio.sleep(0)
        await batcher.stop()
        assert [(await task)[0, 0] for task in tasks] == [2, 4]

    with_batcher(test, max_inline=0.1)


# ------------------------------------------------------------------------------------------------ all of it together

_REQUEST = st.tuples(
    st.integers(1, 5),  # rows
    st.sampled_from([1, 2, 3]),  # width
    st.integers(0, 2),  # model
    st.sampled_from([0, 1, 5, 10]),  # priority
    st.sampled_from([60.0, 60.0, 0.0005, 0.002]),  # timeout
    st.sampled_from(["", "", "", "cancelled", "poison"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(_REQUEST, min_size=1, max_size=40),
    st.integers(1, 3),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.0005]),
    st.integers(10, 200),
    st.sampled_from([0.0, 0.0005, 0.01]),
)
def test_each_caller_gets_exactly_its_rows_or_one_clear_refusal(
    requests: list[tuple[int, int, int, int, float, str]], workers: int, most: int, delay: float, room: int,
    inline: float,
):  # fmt: skip
    models = [Recorder("a/1"), Recorder("b/1", batchable=False), Recorder("c/1", seconds=2e-4)]
    for model in models if inline else []:
        known_to_take(model, 1e-4)
    answered: list[float] = []

    async def one(batcher: Batcher, at: int, request: tuple[int, int, int, int, float, str]) -> None:
        count, width, which, priority, timeout, fate = request
        inputs = rows(1000.0 * (at + 1), count, width)
        if fate == "poison":
            inputs["x"][-1] = POISON
        found = await infer(batcher, models[which], inputs, timeout, priority=priority)
        assert fate != "poison"
        assert np.array_equal(found, inputs["x"] * 2)
        answered.extend(inputs["x"][:, 0])

    async def test(batcher: Batcher) -> None:
        tasks = [asyncio.create_task(one(batcher, at, request)) for at, request in enumerate(requests)]
        await asyncio.sleep(0)
        for task, request in zip(tasks, requests, strict=True):
            if request[5] == "cancelled":
                task.cancel()
        for result, request in zip(await asyncio.gather(*tasks, return_exceptions=True), requests, strict=True):
            allowed: tuple[type[BaseException], ...] = (Busy,)  # Expired is one
            if request[5] == "cancelled":
                allowed = (Busy, asyncio.CancelledError)
            if request[5] == "poison":
                allowed = (Busy, ModelFault)
            assert result is None or isinstance(result, allowed), result
        for model in models:
            assert batcher.waiting_rows(model) == batcher.waiting_requests(model) == 0

    with_batcher(test, workers=workers, max_batch_rows=most, max_queue_rows=room, max_delay=delay, max_inline=inline)
    run = [value for model in models for value in model.rows_run]
    assert set(answered) <= set(run)
    for model in models:
        assert sum(count for count, _ in model.runs) == len(model.rows_run)
        for call in model.calls:
            owners = {value // 1000 for value in call if value != POISON}
            assert len(call) <= max(most, 5)
            assert model.batchable or len(owners) <= 1


def test_expectations_that_were_too_short_are_widened_and_narrowed_again():
    backlog = Backlog()
    assert backlog.margin == 1.2
    for _ in range(40):
        backlog.learn(0.1, 0.19)
    assert 1.8 < backlog.margin < 3.0
    for _ in range(200):
        backlog.learn(0.1, 0.05)
    assert backlog.margin == 1.2
    backlog.learn(0.1, 100.0)
    assert 1.2 < backlog.margin < 3.0  # one that hung is no reason to refuse everything
    for _ in range(40):
        backlog.learn(0.1, 100.0)
    assert backlog.margin == 3.0
