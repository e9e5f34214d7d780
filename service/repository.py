"""Which versions are served: of each model the newest that is proven on this host, and nothing else.

A version is proven when `load_bundle` takes it and `check_gate` passes it with the session options that serve it.
When the newest is not, the next lower one that is proven is served instead, and everybody is told: the log says so
as a warning, /v2/health/ready and /v2/models/{m}/parity give the reason, and two metrics show it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnfold.bundle import list_versions, load_bundle
from bnfold.bundle.manifest import check_name
from bnfold.errors import BnfoldError
from bnfold.parity.gate import GateResult, check_gate
from service.engine import Engine, open_engine, resolve_device
from service.errors import NotReady, UnknownModel
from service.metrics import Metrics
from service.settings import Settings

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A version that is not served, and why: one sentence each. gate: its numbers, None where it came not so far."""

    version: str
    reasons: tuple[str, ...]
    gate: GateResult | None

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
    """One model of the repository.

    served: the version in service with its proof, None where none is proven. refused: newer versions that did not pass.
    older: versions below it, not looked at.
    """

    name: str
    served: Served | None
    refused: tuple[Refusal, ...]
    older: tuple[str, ...]

    @property
    def engine(self) -> Engine | None:
        """The version in service."""
        return None if self.served is None else self.served.engine

    @property
    def fallback(self) -> bool:
        """Whether something older than the newest version is served."""
        return self.served is not None and bool(self.refused)

    @property
    def state(self) -> Literal["ready", "fallback", "refused"]:
        """In one word."""
        if self.served is None:
            return "refused"
        return "fallback" if self.refused else "ready"

    def to_dict(self) -> dict[str, Any]:
        """For the readiness page."""
        return {
            "name": self.name,
            "version": None if self.engine is None else self.engine.version,
            "state": self.state,
            "refused": [{"version": each.version, "reasons": list(each.reasons)} for each in self.refused],
        }

    def proof(self) -> dict[str, Any]:
        """For /v2/models/{name}/parity."""
        return {
            "name": self.name,
            "state": self.state,
            "served": None if self.served is None else self.served.to_dict(),
            "refused": [each.to_dict() for each in self.refused],
            "not_examined": list(self.older),
        }


@dataclass(frozen=True, eq=False)
class Repository:
    """The models as found at start. device: what they run on."""

    entries: Mapping[str, Entry]
    device: Literal["cpu", "cuda"]

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The served versions."""
        return tuple(entry.engine for entry in self.entries.values() if entry.engine is not None)

    @property
    def is_ready(self) -> bool:
        """Whether every model has a proven version, which is what the protocol's server readiness means."""
        return all(entry.engine is not None for entry in self.entries.values())

    def find_entry(self, name: str) -> Entry:
        """A model by name. Raises UnknownModel."""
        entry = self.entries.get(name)
        if entry is None:
            raise UnknownModel(f"there is no model {name!r:.80} here; /v2/health/ready lists the models")
        return entry

    def find(self, name: str, version: str | None = None) -> Engine:
        """The engine of a model. Raises UnknownModel, NotReady (no proven version, or this one was refused)."""
        entry = self.find_entry(name)
        refusal = next((each for each in entry.refused if version in (None, each.version)), None)
        if entry.engine is not None and version in (None, entry.engine.version):
            return entry.engine
        if refusal is not None:
            raise NotReady(f"model {name}/{refusal.version} was refused: {refusal.reasons[0]}")
        raise UnknownModel(f"model {name!r} has no version {version!r:.40} in service; see /v2/models/{name}")


def load_repository(settings: Settings, metrics: Metrics) -> Repository:
    """Scan, prove and open.

    Raises BnfoldError when the folder cannot be read, holds no bundle, or nothing in it is proven, and when the device
    does not start: that is no fault of a version.
    """
    names = _model_names(settings.repository)
    device = resolve_device(settings.device)
    _logger.info("device %s: models run on the %s", settings.device, device.upper())
    entries = {}
    for name in names:
        versions = list_versions(settings.repository / name)
        if versions:
            entries[name] = _load_model(settings, name, versions, device, metrics)
    if not entries:
        raise BnfoldError(
            f"the model repository {settings.repository} holds no bundle; expected folders <name>/<version>/; "
            f"make one with `bnfold fold-and-export SOURCE -o {settings.repository}/<name>`"
        )
    repository = Repository(entries, device)
    if not repository.engines:
        refused = next(iter(entries.values()))
        raise BnfoldError(
            f"nothing in the model repository {settings.repository} is proven, so nothing is served: "
            f"{refused.name}/{refused.refused[0].version} was refused: {refused.refused[0].reasons[0]}"
        )
    return repository


def _model_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as problem:
        raise BnfoldError(
            f"the model repository {folder} cannot be listed ({problem.strerror}); expected a folder of "
            "<name>/<version>/ bundles; check the path"
        ) from None
    return [name for name in names if _is_name(name)]


def _is_name(name: str) -> bool:
    try:
        check_name(name, "the repository")
    except BnfoldError:
        _logger.warning("folder %r in the repository is no name of a model and is left out", name)
        return False
    return True


def _load_model(
    settings: Settings, name: str, versions: tuple[int, ...], device: Literal["cpu", "cuda"], metrics: Metrics
) -> Entry:
    refused: list[Refusal] = []
    served: Served | None = None
    for version in reversed(versions):
        found = _load_version(settings, name, version, device, metrics)
        if isinstance(found, Served):
            served = found
            break
        refused.append(found)
        metrics.show_refused(name, found.version, found.reasons[0])
        _logger.error("model %s/%s is refused: %s", name, found.version, " ".join(found.reasons))
    older = () if served is None else tuple(str(each) for each in versions if each < int(served.engine.version))
    entry = Entry(name, served, tuple(refused), older)
    metrics.show_model(name, ready=served is not None, fallback=entry.fallback)
    _report(entry)
    return entry


def _load_version(
    settings: Settings, name: str, version: int, device: Literal["cpu", "cuda"], metrics: Metrics
) -> Served | Refusal:
    try:
        bundle = load_bundle(settings.repository / name / str(version))
        gate = check_gate(bundle, device=device, threads=1)
        if not gate.passed:
            return _refusal(settings, version, gate.reasons or ("the load gate gave no reason",), gate)
        engine = open_engine(bundle, name, version, device, metrics, settings.max_batch_rows)
        served = Served(engine, gate, bundle.parity())
    except BnfoldError as problem:
        return _refusal(settings, version, (str(problem),), None)
    except Exception as problem:  # a hostile version must not keep the others from being served
        _logger.exception("the load gate itself failed on %s/%d", name, version)
        reason = f"the load gate could not judge it ({type(problem).__name__}); the server's log says more"
        return _refusal(settings, version, (reason,), None)
    metrics.show_served(name, engine.version, engine.provider, engine.digest)
    if (bundle.manifest.name, bundle.manifest.version) != (name, version):
        _logger.warning(
            "the manifest of %s/%d says %s/%d; it is served under its folder's name",
            name, version, bundle.manifest.name, bundle.manifest.version,
        )  # fmt: skip
    return served


def _refusal(settings: Settings, version: int, reasons: Sequence[str], gate: GateResult | None) -> Refusal:
    """Strangers see the reasons: where the repository lies on this machine is none of their business."""
    here = f"{settings.repository}{os.sep}"
    return Refusal(str(version), tuple(reason.replace(here, "") for reason in reasons), gate)


def _report(entry: Entry) -> None:
    if entry.engine is None:
        _logger.error("model %s has no proven version and is not served", entry.name)
        return
    _logger.info(
        "model %s is proven and served (%s, sha256 %s)", entry.engine.label, entry.engine.provider, entry.engine.digest
    )
    if entry.fallback:
        newest = entry.refused[0]
        _logger.warning(
            "FALLBACK: model %s serves version %s because version %s was refused: %s",
            entry.name, entry.engine.version, newest.version, newest.reasons[0],
        )  # fmt: skip
