"""The models as they are at this moment: what every request asks, and what a load replaces in one assignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from service.engine import Engine
from service.errors import Fault, NotReady, UnknownModel
from service.repository.entries import Entry


class Repository:
    """The live catalogue. Read and changed on the event loop alone; each change replaces a mapping as a whole.

    entries: the models that this server owes its clients; it is ready when each has a proven version. asides: models
    that it knows of and does not owe: unloaded ones, and ones that came later and were never proven.
    device: what models run on.
    """

    def __init__(
        self, entries: Mapping[str, Entry], device: Literal["cpu", "cuda"], asides: Mapping[str, Entry] | None = None
    ) -> None:
        self.entries = dict(entries)
        self.asides = dict(asides or {})
        self.device = device

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The served versions of all models."""
        return tuple(engine for entry in self.entries.values() for engine in entry.engines.values())

    @property
    def is_ready(self) -> bool:
        """Whether there are models and each has a proven version: what the protocol's server readiness means."""
        return bool(self.entries) and all(entry.engine is not None for entry in self.entries.values())

    @property
    def unreadiness(self) -> str | None:
        """Why it is not ready, in one sentence; None when it is."""
        if self.is_ready:
            return None
        return "a model has no proven version" if self.entries else "no model is loaded"

    def find_entry(self, name: str) -> Entry:
        """A model by name, also one that is set aside. Raises UnknownModel."""
        entry = self.entries.get(name) or self.asides.get(name)
        if entry is None:
            raise UnknownModel(f"there is no model {name!r:.80} here; /v2/health/ready lists the models")
        return entry

    def find(self, name: str, version: str | None = None) -> Engine:
        """The engine of a version, or of the newest in service.

        Raises UnknownModel, NotReady (no proven version, or this one was refused).
        """
        entry = self.entries.get(name)
        if entry is not None:
            engine = entry.engine if version is None else entry.engines.get(version)
            if engine is not None:
                return engine
        raise self._absence(name, version)

    def _absence(self, name: str, version: str | None) -> Fault:
        try:
            entry = self.find_entry(name)
        except UnknownModel as problem:
            return problem
        if entry.unloaded:
            return UnknownModel(f"model {name} was unloaded; it is served again once it is loaded")
        refusal = entry.find_refusal(version)
        if refusal is not None:
            return NotReady(f"model {name}/{refusal.version} was refused: {refusal.reasons[0]}")
        if version is None:
            return NotReady(f"model {name} has no version in service: {entry.trouble or 'none is proven'}")
        return UnknownModel(f"model {name!r} has no version {version!r:.40} in service; see /v2/models/{name}")

    def replace(self, entry: Entry) -> Entry | None:
        """Put a model in the place of what was known of it, in one assignment; gives what that was."""
        before = self.entries.get(entry.name) or self.asides.get(entry.name)
        owed = not entry.unloaded and (bool(entry.served) or entry.name in self.entries)
        others = {name: each for name, each in self.asides.items() if name != entry.name}
        if owed:
            self.entries = {**self.entries, entry.name: entry}
            self.asides = others
        else:
            self.asides = {**others, entry.name: entry}
            self.entries = {name: each for name, each in self.entries.items() if name != entry.name}
        return before
