"""From a folder to a version that may be served: hashes, schema, load gate, session, warm-up. Any thread may do it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bnfold.bundle import Bundle, load_bundle
from bnfold.errors import BnfoldError
from bnfold.parity.gate import GateResult, check_gate
from service.engine import Engine, open_engine
from service.repository.entries import Refusal, Served
from service.repository.scanning import fingerprint
from service.settings import Settings
from service.telemetry.metrics import Metrics

_logger = logging.getLogger(__name__)

_WARM_UPS = 3  # goldens that are run before the first request; the first run of a session is the slow one


@dataclass(frozen=True, eq=False)
class Workshop:
    """What it takes to open a version. device: what models run on."""

    settings: Settings
    device: Literal["cpu", "cuda"]
    metrics: Metrics

    @property
    def folder(self) -> Path:
        """The repository."""
        return self.settings.repository

    def prove(self, name: str, version: int) -> Served | Refusal:
        """Load, check and open one version. Never raises for what is wrong with it: that is a refusal."""
        folder = self.folder / name / str(version)
        before = fingerprint(folder)
        found = self._prove(folder, name, version, before)
        if isinstance(found, Refusal) and fingerprint(folder) != before:
            return Refusal(found.version, found.reasons, found.gate)  # half copied: no verdict on what it will be
        return found

    def _prove(self, folder: Path, name: str, version: int, mark: str) -> Served | Refusal:
        try:
            bundle = load_bundle(folder)
            gate = check_gate(bundle, device=self.device, threads=1)
            if not gate.passed:
                return self._refuse(version, gate.reasons or ("the load gate gave no reason",), gate, mark)
            parity = bundle.parity()
            engine = self._open(bundle, name, version)
            served = Served(engine, gate, parity, mark)
        except BnfoldError as problem:
            return self._refuse(version, (str(problem),), None, mark)
        except Exception as problem:  # a hostile version must not keep the others from being served
            _logger.exception("the load gate itself failed on %s/%d", name, version)
            reason = f"the load gate could not judge it ({type(problem).__name__}); the server's log says more"
            return self._refuse(version, (reason,), None, mark)
        if (bundle.manifest.name, bundle.manifest.version) != (name, version):
            _logger.warning(
                "the manifest of %s/%d says %s/%d; it is served under its folder's name",
                name, version, bundle.manifest.name, bundle.manifest.version,
            )  # fmt: skip
        return served

    def _open(self, bundle: Bundle, name: str, version: int) -> Engine:
        engine = open_engine(bundle, name, version, self.device, self.metrics, self.settings)
        try:
            # A batchable one has run all its goldens while it was opened.
            for golden in () if engine.batchable else bundle.goldens()[:_WARM_UPS]:
                engine.run(golden.inputs)
        except BaseException:
            self.discard(engine)
            raise
        return engine

    def discard(self, engine: Engine) -> None:
        """Close an engine that never served."""
        engine.close()
        self.metrics.forget(engine.name, engine.version)

    def _refuse(self, version: int, reasons: Sequence[str], gate: GateResult | None, mark: str) -> Refusal:
        """Strangers see the reasons: where the repository lies on this machine is none of their business."""
        here = f"{self.folder}{os.sep}"
        return Refusal(str(version), tuple(reason.replace(here, "") for reason in reasons), gate, mark)
