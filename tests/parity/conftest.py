"""The networks of these tests are a plain module beside them, which pytest finds through this path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import hashlib
import json
import shutil
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from parity_networks import small_cnn

from bnfold.build import build_bundle


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small network, folded and proven, that no test may change."""
    folder = tmp_path_factory.mktemp("parity")
    onnx.save(small_cnn(), folder / "net.onnx")
    rng = np.random.default_rng(1)
    data = rng.random((120, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 120)
    labels = [str(digit) for digit in range(10)]
    return build_bundle(
        folder / "net.onnx", folder / "models" / "net", data=data, output_kind="logits", labels=labels
    ).path


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of a bundle to do harm to."""
    return Path(shutil.copytree(pristine, tmp_path / "net" / "1"))


@pytest.fixture
def mend() -> Callable[[Path], None]:
    """Write the hashes of the files as they are into the manifest, as somebody would who hides a change."""

    def mend(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for path in manifest["files"]:
            manifest["files"][path] = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return mend
