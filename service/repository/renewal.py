"""The next entry of a model: what the policy asks for, each version proven or refused, the last good ones kept.

Nothing here changes what is served: the entry that comes out takes the place of the old one on the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from bnfold.bundle import list_versions
from bnfold.errors import BnfoldError
from service.repository.entries import Entry, Refusal, Served
from service.repository.policy import Policy
from service.repository.proving import Workshop
from service.repository.scanning import fingerprint

_logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The server stops while a model is loaded."""


@dataclass(frozen=True, eq=False)
class Renewal:
    """How to look at a model again.

    before: what is known of it, None for the first time. fresh: prove everything again; otherwise a version whose files
    are as they were is taken as it was found then. stopped: asked before each version.
    """

    shop: Workshop
    name: str
    policy: Policy
    before: Entry | None = None
    fresh: bool = True
    stopped: Callable[[], bool] = lambda: False

    def run(self) -> Entry:
        """The next entry, in any thread.

        A version that is refused and in service stays in service as it was; when nothing at all is proven, everything
        that is in service stays. Raises Stopped, BnfoldError when the model's folder cannot be listed.
        """
        versions = list_versions(self.shop.folder / self.name)
        served: list[Served] = []
        refused: list[Refusal] = []
        for version in self.policy.order(versions):
            if self.policy.has_enough(len(served)):
                break
            if self.stopped():
                raise Stopped
            # Once a version is refused the rest is fallback: what serves already is not proved, and opened, again.
            fresh = self.fresh and not refused
            found = self._examine(version, fresh) if version in versions else _absent(version)
            if isinstance(found, Refusal):
                refused.append(found)
                kept = self._kept(version)
                served += [] if kept is None else [kept]
            else:
                served.append(found)
        trouble = ""
        if not versions:
            trouble = f"model {self.name} has no version in the repository"
        if not served and self.before is not None:
            served = list(self.before.served)
        seen = {each.version for each in served} | {each.version for each in refused}
        older = tuple(str(version) for version in versions if str(version) not in seen)
        return Entry(self.name, tuple(served), tuple(refused), older, trouble)

    def _examine(self, version: int, fresh: bool) -> Served | Refusal:
        if not fresh and self.before is not None:
            mark = fingerprint(self.shop.folder / self.name / str(version))
            refusal, kept = self.before.find_refusal(str(version)), self._kept(version)
            if refusal is not None and mark and refusal.fingerprint == mark:  # newer than what is kept, if both are
                return refusal
            if kept is not None and mark and kept.fingerprint == mark:
                return kept
        found = self.shop.prove(self.name, version)
        if isinstance(found, Refusal):
            _logger.error("model %s/%s is refused: %s", self.name, found.version, " ".join(found.reasons))
        return found

    def _kept(self, version: int) -> Served | None:
        return None if self.before is None else self.before.find_served(str(version))


def _absent(version: int) -> Refusal:
    return Refusal(str(version), ("the version policy asks for it, but it is not in the repository",))


def renew(renewal: Renewal) -> Entry:
    """As `Renewal.run`; a folder that cannot be listed changes nothing of what is served and is the entry's trouble."""
    try:
        return renewal.run()
    except BnfoldError as problem:
        before = renewal.before
        reason = str(problem).replace(f"{renewal.shop.folder}/", "")
        _logger.error("model %s cannot be loaded: %s", renewal.name, problem)
        served, older = ((), ()) if before is None else (before.served, before.older)
        return Entry(renewal.name, served, (), older, reason)


def report(entry: Entry, before: Entry | None = None) -> None:
    """Say in the log what is served now; before: what was known of the model, None at start."""
    known = () if before is None else before.served
    for each in entry.served:
        engine = each.engine
        if each not in known:
            _logger.info("model %s is proven and served (%s, sha256 %s)", engine.label, engine.provider, engine.digest)
    if entry.engine is None:
        _logger.error("model %s has no proven version and is not served", entry.name)
    elif entry.failure:
        word = "FALLBACK" if before is None else "ROLLBACK"
        _logger.warning("%s: model %s serves version %s: %s", word, entry.name, entry.engine.version, entry.failure)
