"""Bundles to read and drafts to write; the drafts are a plain module, so that subprocesses can make them too."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bundle_drafts import make_draft, prove

from bnfold.bundle import BundleDraft, write_bundle


@pytest.fixture
def draft() -> BundleDraft:
    return make_draft()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("models") / "tiny", make_draft(), prove=prove).path


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of a bundle to do harm to."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny" / "1"))
