"""What is known of one model: the versions in service with their proofs, and those that were refused, with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bnfold.parity.gate import GateResult
from service.engine import Engine

State = Literal["ready", "fallback", "refused", "unloaded"]


@dataclass(frozen=True)
class Refusal:
    """A version that is not served, and why: one sentence each.

    gate: its numbers, None where it came not so far. fingerprint: of the files that were refused; "" where they changed
    meanwhile, which no later fingerprint equals.
    """

    version: str
    reasons: tuple[str, ...]
    gate: GateResult | None = None
    fingerprint: str = field(default="", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        gate = None if self.gate is None else self.gate.to_dict()
        return {"version": self.version, "reasons": list(self.reasons), "gate": gate}


@dataclass(frozen=True, eq=False)
class Served:
    """A version in service. gate: what it showed on this host. parity: its parity.json, from where it was built."""

    engine: Engine
    gate: GateResult
    parity: Mapping[str, Any]
    fingerprint: str = field(default="", repr=False)

    @property
    def version(self) -> str:
        """The name of its folder."""
        return self.engine.version

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "version": self.engine.version,
            "model_sha256": self.engine.digest,
            "provider": self.engine.provider,
            "batching": self.engine.batchable,
            "gate": self.gate.to_dict(),
            "parity": dict(self.parity),
        }


@dataclass(frozen=True, eq=False)
class Entry:
    """One model of the repository, never changed: a load makes another entry and puts it in the place of this one.

    served: the versions in service with their proofs, newest first. refused: versions that the policy asks for and that
    did not pass; one of them may also be served, as it was before its files changed. older: versions that were not
    looked at. trouble: what went wrong with the last load beside that, one sentence. engine: the newest in service.
    """

    name: str
    served: tuple[Served, ...]
    refused: tuple[Refusal, ...] = ()
    older: tuple[str, ...] = ()
    trouble: str = ""
    unloaded: bool = False
    engine: Engine | None = field(init=False)
    engines: Mapping[str, Engine] = field(init=False)

    def __post_init__(self) -> None:
        """Prepare what `find` needs, which every request goes through."""
        object.__setattr__(self, "engines", {each.version: each.engine for each in self.served})
        object.__setattr__(self, "engine", self.served[0].engine if self.served else None)

    def is_like(self, other: Entry) -> bool:
        """Whether the same engines serve, for the same reasons."""
        found = (self.served, self.refused, self.trouble, self.unloaded)
        return found == (other.served, other.refused, other.trouble, other.unloaded)

    def find_served(self, version: str) -> Served | None:
        """A version in service."""
        return next((each for each in self.served if each.version == version), None)

    def find_refusal(self, version: str | None) -> Refusal | None:
        """Why a version, or with None the newest, is not served."""
        return next((each for each in self.refused if version in (None, each.version)), None)

    @property
    def fallback(self) -> bool:
        """Whether something older is served than what the repository has as newest."""
        return bool(self.served and self.refused) and int(self.refused[0].version) >= int(self.served[0].version)

    @property
    def state(self) -> State:
        """In one word."""
        if self.unloaded:
            return "unloaded"
        if not self.served:
            return "refused"
        return "fallback" if self.fallback else "ready"

    @property
    def failure(self) -> str:
        """What went wrong with the last load in one sentence; empty when all that was asked for is served."""
        if not self.refused:
            return self.trouble
        newest = self.refused[0]
        return f"model {self.name}/{newest.version} was refused: {newest.reasons[0]}"

    def to_dict(self) -> dict[str, Any]:
        """For the readiness page."""
        return {
            "name": self.name,
            "version": None if self.engine is None else self.engine.version,
            "versions": list(self.engines),
            "state": self.state,
            "refused": [{"version": each.version, "reasons": list(each.reasons)} for each in self.refused],
        }

    def proof(self) -> dict[str, Any]:
        """For /v2/models/{name}/parity."""
        return {
            "name": self.name,
            "state": self.state,
            "served": self.served[0].to_dict() if self.served else None,
            "also_served": [each.to_dict() for each in self.served[1:]],
            "refused": [each.to_dict() for each in self.refused],
            "not_examined": list(self.older),
            "last_failure": self.failure or None,
        }
