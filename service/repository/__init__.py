"""The models of the server, from the folder on disk to what a request finds.

    scanning.py    names, versions, fingerprints of files          entries.py     what is known of one model
    proving.py     one version: hashes, gate, session, warm-up     catalogue.py   the models at this moment
    renewal.py     one model: its versions by the policy           keeper.py      load, unload, poll, follow, drain
    start.py       all models, before the first request            index.py       what the repository index lists

A version is proven when `load_bundle` takes it and `check_gate` passes it with the session options that serve it. When
one is not, the last good one serves instead, and everybody is told: the log says so as a warning, /v2/health/ready,
/v2/models/{m}/parity and the repository index give the reason, and metrics show it.
"""

from __future__ import annotations

from service.repository.catalogue import Repository
from service.repository.entries import Entry, Refusal, Served
from service.repository.start import load_repository

__all__ = ["Entry", "Refusal", "Repository", "Served", "load_repository"]
