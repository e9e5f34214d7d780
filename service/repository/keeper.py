"""Loading and unloading while requests run: by API, by polling, and by following what other workers were asked.

A model is loaded in a thread, one at a time, and takes the place of the old one in one assignment on the event loop.
What leaves service is closed when the last request that holds it has its answer. A load that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from bnfold.errors import BnfoldError
from service.engine import Engine
from service.errors import Busy, LoadFailed, UnknownModel, Unsaved
from service.processes.lifecycle import Lifecycle
from service.repository.catalogue import Repository
from service.repository.entries import Entry, Served
from service.repository.index import Listing, list_index
from service.repository.policy import Policy, parse_policy
from service.repository.proving import Workshop
from service.repository.renewal import Renewal, Stopped, renew, report
from service.repository.scanning import Lookout, is_name, snapshot
from service.repository.shown import Shown
from service.repository.state import DesiredState, Look, Wish

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_FOLLOW = 0.2  # seconds between two looks at what other workers were asked
_IDLE = 0.01  # seconds between two looks at whether an engine is still in use


class Keeper:
    """Changes the catalogue while the server runs. Every method belongs to the event loop.

    look: what the catalogue was loaded by.
    """

    def __init__(
        self,
        repository: Repository,
        shop: Workshop,
        desired: DesiredState,
        look: Look,
        shown: Shown,
        lifecycle: Lifecycle,
    ) -> None:
        self._repository = repository
        self._shop = shop
        self._desired = desired
        self._shown = shown
        self._lifecycle = lifecycle
        self._stamp = look.stamp
        self._wishes = dict(look.wishes)
        self._done = {name: wish.epoch for name, wish in self._wishes.items()}
        self._lookout = Lookout()
        self._locks: dict[str, asyncio.Lock] = {}
        self._loading: set[str] = set()
        self._leaving: dict[Engine, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._proofs: list[Future[Entry]] = []
        self._stopped = False
        # One thread proves, so that a load takes one core and no more; the other waits for the disk.
        self._prover = ThreadPoolExecutor(1, thread_name_prefix="bnfold-load")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="bnfold-state")

    # --------------------------------------------------------------------------------------------- start and stop

    def start(self) -> None:
        """Show what was loaded at start; begin to follow and, if so set, to poll."""
        for entry in (*self._repository.entries.values(), *self._repository.asides.values()):
            self._shown.show(None, entry)
        if self._shop.settings.state_dir is not None:
            self._spawn(self._every(_FOLLOW, self._follow))
        if self._shop.settings.poll_interval > 0:
            self._spawn(self._every(self._shop.settings.poll_interval, self._poll))

    async def stop(self) -> None:
        """End what runs here; a version that is being proved is the last one."""
        self._stopped = True
        tasks = [*self._tasks, *self._leaving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._prover.shutdown(wait=False, cancel_futures=True)
        self._reader.shutdown(wait=False, cancel_futures=True)

    @property
    def is_busy(self) -> bool:
        """Whether a version is still being proved, which nothing can stop."""
        return any(not proof.done() for proof in self._proofs)

    # -------------------------------------------------------------------------------------------------- by request

    async def load(self, name: str, policy: str = "") -> None:
        """Prove a model again, as it is on disk now, and serve it; returns when this process does.

        It is done to its end also when the caller is cancelled, as a gRPC client's deadline does.
        policy: its own version policy from now on, "" for the server's. Raises UnknownModel, LoadFailed (a version that
        the policy asks for was refused; what was served keeps being served, or an older version takes its place),
        Unsaved (nothing changed), Busy (stopping).
        """
        await self._check(name)
        await asyncio.shield(self._spawn(self._load(name, policy)))

    async def _load(self, name: str, policy: str) -> None:
        async with self._lock(name):
            before = self._repository.entries.get(name)
            entry = await self._renew(name, self._policy(policy), fresh=True)
            new = [each for each in entry.served if before is None or each not in before.served]
            if new or not entry.failure:
                try:
                    await self._write(name, "load", policy)
                except Unsaved:
                    self._discard(new, before)
                    raise
            self._place(entry)
        if entry.failure:
            after = "; nothing of it is served"
            if entry.engine is not None:
                after = f"; version {entry.engine.version} is served"
            raise LoadFailed(f"{entry.failure}{after}")

    async def unload(self, name: str) -> None:
        """Take a model out of service; returns when no request holds it any more, or after `request_timeout`.

        It is done also when the caller is cancelled.
        Raises UnknownModel, Unsaved (nothing changed), Busy (stopping).
        """
        await self._check(name)
        leaving = await asyncio.shield(self._spawn(self._write_and_unload(name)))
        if leaving:
            await asyncio.wait(leaving, timeout=self._shop.settings.request_timeout)

    async def _write_and_unload(self, name: str) -> list[asyncio.Task[None]]:
        async with self._lock(name):
            await self._write(name, "unload")
            return self._unload(name)

    async def index(self, *, ready: bool) -> list[dict[str, Any]]:
        """The repository index; see `list_index`."""
        try:
            on_disk = await self._call(self._reader, lambda: snapshot(self._shop.folder, marks=False))
        except BnfoldError as problem:
            _logger.warning("%s", problem)
            on_disk = {}
        leaving = [(engine.name, engine.version) for engine in self._leaving]
        return list_index(Listing(self._repository, on_disk, frozenset(self._loading), leaving), ready=ready)

    async def _check(self, name: str) -> None:
        """Only names of models that are here go further: no other reaches the file system or the state."""
        if self._lifecycle.draining:
            raise Busy("the server is stopping; try again elsewhere")
        if name in self._repository.entries or name in self._repository.asides:
            return
        if is_name(name):
            try:
                on_disk = await self._call(self._reader, lambda: snapshot(self._shop.folder, marks=False, only=name))
            except BnfoldError as problem:
                _logger.error("%s", problem)
                raise Busy("the model repository cannot be listed; the server's log says why") from None
            if on_disk.get(name):
                return
        raise UnknownModel(
            f"there is no model {name!r:.80} in the repository; POST /v2/repository/index lists the models"
        )

    # ------------------------------------------------------------------------------------------------- by itself

    async def _follow(self) -> None:
        """Do what another worker was asked, each change once."""
        if self._desired.stamp() == self._stamp:
            return
        look = await self._call(self._reader, self._desired.look)
        self._stamp = look.stamp
        for name, wish in look.wishes.items():
            if wish.epoch > self._done.get(name, 0):
                self._spawn(self._fulfil(name, wish))

    async def _fulfil(self, name: str, wish: Wish) -> None:
        async with self._lock(name):
            if wish.epoch <= self._done.get(name, 0):
                return  # a later request has overtaken it
            self._note(name, wish)
            _logger.info("another worker was asked to %s model %s; so does this one", wish.action, name)
            if wish.action == "unload":
                self._unload(name)
                return
            try:
                self._place(await self._renew(name, self._policy(wish.policy), fresh=True))
            except Busy as stopping:
                _logger.info("model %s is left as it is: %s", name, stopping)
            except Exception:
                _logger.exception("model %s could not be loaded; what is served of it stays", name)

    async def _poll(self) -> None:
        """Load what has changed on disk, once it has stopped changing: the same at two looks in a row.

        A model whose versions have all gone keeps being served: an operator takes a model away with unload, while a
        volume that comes loose must stop nothing.
        """
        found = await self._call(self._reader, lambda: snapshot(self._shop.folder))
        for name in self._lookout.look(found):
            await self._poll_model(name)
            self._lookout.done(name)

    async def _poll_model(self, name: str) -> None:
        async with self._lock(name):
            wish = self._wishes.get(name)
            if wish is not None and wish.action == "unload":
                return
            before = self._repository.entries.get(name) or self._repository.asides.get(name)
            entry = await self._renew(name, self._policy("" if wish is None else wish.policy), fresh=False)
            if before is None or not entry.is_like(before):
                self._place(entry)

    # ------------------------------------------------------------------------------------------------- the change

    async def _renew(self, name: str, policy: Policy, *, fresh: bool) -> Entry:
        before = self._repository.entries.get(name) or self._repository.asides.get(name)
        renewal = Renewal(self._shop, name, policy, before, fresh=fresh, stopped=lambda: self._stopped)
        self._loading.add(name)
        started = time.perf_counter()
        try:
            entry = await self._prove(renewal)
        except Stopped:
            raise Busy("the server is stopping; try again elsewhere") from None
        finally:
            self._loading.discard(name)
        _logger.info("model %s was looked at in %.3f s", name, time.perf_counter() - started)
        return entry

    async def _prove(self, renewal: Renewal) -> Entry:
        """Wait for the thread that proves, but not beyond the end of the server. Raises Stopped."""
        proof = self._prover.submit(renew, renewal)
        self._proofs = [each for each in (*self._proofs, proof) if not each.done()]
        waiting = asyncio.wrap_future(proof)
        while not waiting.done():
            if self._lifecycle.closed:
                waiting.cancel()
                raise Stopped
            await asyncio.wait((waiting,), timeout=_FOLLOW)
        return waiting.result()

    def _place(self, entry: Entry) -> None:
        """Put an entry in the place of the old one: from here on requests find the new one."""
        before = self._repository.replace(entry)
        outcome = "success" if not entry.failure else "rollback" if entry.served else "failure"
        self._shown.count_load(entry.name, outcome)
        report(entry, before)
        self._retire(before, entry)

    def _discard(self, new: list[Served], before: Entry | None) -> None:
        for each in new:
            self._shop.discard(each.engine)
        if before is not None:
            self._shown.show(None, before)

    def _unload(self, name: str) -> list[asyncio.Task[None]]:
        before = self._repository.entries.get(name) or self._repository.asides.get(name)
        versions = () if before is None else (*before.engines, *before.older)
        entry = Entry(name, (), older=tuple(dict.fromkeys(versions)), unloaded=True)
        self._repository.replace(entry)
        _logger.info("model %s is unloaded", name)
        return self._retire(before, entry)

    def _retire(self, before: Entry | None, after: Entry) -> list[asyncio.Task[None]]:
        """Close what is served no more, each engine when nobody holds it."""
        self._shown.show(before, after)
        kept = set(after.engines.values())
        gone = [] if before is None else [engine for engine in before.engines.values() if engine not in kept]
        for engine in gone:
            self._leaving[engine] = asyncio.create_task(self._close(engine))
        return [self._leaving[engine] for engine in gone]

    async def _close(self, engine: Engine) -> None:
        try:
            while engine.in_flight:
                await asyncio.sleep(_IDLE)
            engine.close()
            self._shown.forget(engine, self._repository)
            _logger.info("model %s (sha256 %.12s) is closed", engine.label, engine.digest)
        finally:
            del self._leaving[engine]

    # ---------------------------------------------------------------------------------------------------- details

    async def _write(self, name: str, action: Literal["load", "unload"], policy: str = "") -> None:
        wish = await self._call(self._reader, lambda: self._desired.change(name, action, policy))
        self._note(name, wish)

    def _note(self, name: str, wish: Wish) -> None:
        self._wishes[name] = wish
        self._done[name] = wish.epoch

    def policy_of(self, name: str) -> Policy:
        """The version policy of a model: its own since a load that gave it one, or the server's."""
        wish = self._wishes.get(name)
        return self._policy("" if wish is None else wish.policy)

    def _policy(self, text: str) -> Policy:
        return parse_policy(text or self._shop.settings.version_policy)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _call(self, pool: Executor, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool, function)

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _every(self, seconds: float, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do a step for ever; what goes wrong is said once, until something else does."""
        said = ""
        while True:
            await asyncio.sleep(seconds)
            try:
                await step()
                said = ""
            except BnfoldError as problem:
                if str(problem) != said:
                    _logger.error("%s; what is served stays", problem)
                said = str(problem)
            except Busy as stopping:  # in the midst of a load
                _logger.info("the repository is looked at no more: %s", stopping)
                return
            except Exception:
                _logger.exception("the repository could not be looked at")
