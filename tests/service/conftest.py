"""A repository of real bundles, and servers on it over real sockets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG

sys.path.insert(0, str(Path(__file__).parent))

from service_networks import build_digits, free_size_network, save, two_input_network
from service_runs import PATIENCE, Running, running

from bnfold import build_bundle
from service.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def patient_clients() -> Iterator[None]:
    """httpx gives up after five seconds where a test names no time: a slow machine is no failure."""
    with pytest.MonkeyPatch.context() as patch:
        for phase in ("connect", "read", "write", "pool"):
            patch.setattr(DEFAULT_TIMEOUT_CONFIG, phase, PATIENCE)
        yield


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits/1 (pictures, logits), pair/1 (two inputs, raw), free/1 (free sizes), mixing/1 (rows depend on others)."""
    root = tmp_path_factory.mktemp("serving")
    models, sources = root / "models", root / "sources"
    build_digits(models, sources)
    build_bundle(save(two_input_network(), sources / "pair.onnx"), models / "pair")
    samples = np.random.default_rng(0).normal(size=(8, 1, 5, 6)).astype(np.float32)
    for name, mixing in (("free", False), ("mixing", True)):
        model = save(free_size_network(mixing=mixing), sources / f"{name}.onnx")
        build_bundle(model, models / name, data=(samples, None))
    (models / "unbuilt").mkdir()
    (models / "unbuilt" / "recipe.toml").write_text("[network]\n")
    return models


@pytest.fixture(scope="session")
def digits_only(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the one model digits/1."""
    root = tmp_path_factory.mktemp("digits")
    (root / "digits").symlink_to(repository / "digits")
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Running]:
    with running(Settings(repository=repository, device="cpu", port=0, threads=2)) as started:
        yield started


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as started:
        yield started
