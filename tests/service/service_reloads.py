"""Repositories that change under a running server, and clients that know what each version must answer."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from service_networks import build_digits
from service_runs import Running, running

from bnfold.runtime import open_session, run
from service.settings import Settings

KEY = "an-admin-key-of-the-tests"
ADMIN = {"Authorization": f"Bearer {KEY}"}
SAMPLE = np.random.default_rng(7).uniform(0, 1, (1, 1, 8, 8)).astype(np.float32)
REQUEST = {"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": SAMPLE.ravel().tolist()}]}
_CLOSE = 1e-4  # versions differ by more than 0.1, rounding by less than 1e-6


def build_versions(folder: Path, count: int) -> Path:
    """Bundles of `count` networks of different weights, folder/digits/1 and so on; to be copied, never served."""
    for seed in range(count):
        build_digits(folder / "built", folder / "sources", seed=seed)
    return folder / "built" / "digits"


def put(built: Path, models: Path, version: int, as_version: int | None = None) -> Path:
    """Publish a bundle as bnfold does: a temporary sibling, renamed."""
    target = models / "digits" / str(as_version or version)
    writing = target.with_name(f".writing-{target.name}")
    shutil.copytree(built / str(version), writing)
    return writing.rename(target)


def logits(version: Path) -> np.ndarray[Any, Any]:
    """What a bundle answers to SAMPLE, from a session of its own."""
    return run(open_session(version / "model.onnx", optimise=True), {"input": SAMPLE})["logits"]


def is_answer(found: httpx.Response, expected: np.ndarray[Any, Any]) -> bool:
    """Whether a response holds these logits."""
    data = np.array(found.json()["outputs"][0]["data"], np.float32)
    return bool(np.abs(data - expected.ravel()).max() < _CLOSE)


@contextlib.contextmanager
def serving(models: Path, folder: Path, **settings: Any) -> Iterator[Running]:
    """A server with an admin key, in a thread."""
    key = folder / "admin.key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    with running(
        Settings(repository=models, device="cpu", port=0, threads=1, admin_key_file=key, **settings)
    ) as started:
        yield started


@dataclass
class Admin:
    """One who may load and unload."""

    client: httpx.Client

    def load(self, model: str = "digits", **parameters: Any) -> httpx.Response:
        return self.client.post(f"/v2/repository/models/{model}/load", json={"parameters": parameters})

    def unload(self, model: str = "digits") -> httpx.Response:
        return self.client.post(f"/v2/repository/models/{model}/unload")

    def infer(self, version: str | None = None, model: str = "digits") -> httpx.Response:
        path = f"/v2/models/{model}/infer" if version is None else f"/v2/models/{model}/versions/{version}/infer"
        return self.client.post(path, json=REQUEST)

    def serves(self) -> str | None:
        """The version that answers; None where none does."""
        return self.infer().headers.get("bnfold-model-version")

    def states(self, model: str = "digits") -> dict[str, str]:
        listed = self.client.post("/v2/repository/index").json()
        return {each["version"]: each["state"] for each in listed if each["name"] == model}

    def reason(self, version: str) -> str:
        listed = self.client.post("/v2/repository/index").json()
        return next(each["reason"] for each in listed if each["version"] == version)

    def loads(self, outcome: str, model: str = "digits") -> float:
        """How often a load ended so."""
        start = f'bnfold_model_loads_total{{model="{model}",outcome="{outcome}"}}'
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(start)), 0.0)


@contextlib.contextmanager
def admin(url: str) -> Iterator[Admin]:
    """A client with the key."""
    with httpx.Client(base_url=url, headers=ADMIN, timeout=60) as client:
        yield Admin(client)


@dataclass
class Hammer:
    """Clients that ask without a pause and check every answer against the version that its header names."""

    url: str
    expected: Mapping[str, np.ndarray[Any, Any]]
    count: int = 0
    wrong: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def pounding(self, clients: int) -> Iterator[Hammer]:
        """Ask for as long as the block lasts."""
        threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, headers=ADMIN, timeout=60) as client:
            while not self._stop.is_set():
                found = client.post("/v2/models/digits/infer", json=REQUEST)
                self._note(found)

    def _note(self, found: httpx.Response) -> None:
        version = found.headers.get("bnfold-model-version", "")
        right = found.status_code == 200 and is_answer(found, self.expected[version])
        with self._lock:
            self.count += 1
            self.seen.add(version)
            if not right:
                self.wrong.append(f"{found.status_code} {version} {found.text:.200}")
