"""Which version of a model is meant."""

from __future__ import annotations

from pathlib import Path

from bnfold.errors import BundleError


def find_version(path: Path) -> Path:
    """A version folder: the path itself, or the newest version under a model folder. Raises BundleError."""
    from bnfold.bundle import list_versions

    if not path.is_dir():
        raise BundleError(f"{path} is not there or no folder; expected a bundle that `bnfold fold-and-export` wrote")
    if (path / "manifest.json").exists():
        return path
    versions = list_versions(path)
    if not versions:
        raise BundleError(
            f"{path} is no bundle: found neither manifest.json nor a version folder in it; "
            "expected a folder that `bnfold fold-and-export` wrote"
        )
    return path / str(versions[-1])
