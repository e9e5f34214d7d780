"""Where it was measured: processor, system, and the versions of everybody, without a word on whose machine it is."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.servers import Server

_OURS = ("onnxruntime", "onnxruntime-gpu", "numpy", "uvicorn", "uvloop", "httptools", "fastapi", "starlette", "orjson")
_LIST = (
    "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
)
_THEIRS = ("onnxruntime", "numpy", "uvicorn", "uvloop", "httptools", "fastapi", "starlette", "pydantic")


def describe(environments: Path | None, servers: Sequence[Server]) -> dict[str, Any]:
    """Processor, cores, system, date, and versions by environment."""
    versions: dict[str, dict[str, str]] = {"bnfold": {}}
    for name in _OURS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions["bnfold"][name] = importlib.metadata.version(name)
    for server in servers:
        if server.environment and environments is not None:
            versions[server.environment] = _versions(environments / server.environment / "bin" / "python", server)
    return {
        "processor": _processor(), "cores": os.cpu_count(), "system": platform.system(),
        "kernel": platform.release().split("-")[0], "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"), "versions": versions,
    }  # fmt: skip


def commit(checkout: Path) -> str:
    """Which one is measured."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=checkout, capture_output=True, text=True, check=False).stdout.strip()


def _versions(python: Path, server: Server) -> dict[str, str]:
    done = subprocess.run([str(python), "-c", _LIST], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    own = server.packages[0].partition("[")[0]
    return {name: found[name] for name in (own, *_THEIRS) if name in found}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
