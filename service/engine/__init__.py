"""What computes: one proven version behind an interface, so that the runtime below it can be another.

engine.py    a version that is served      runtimes.py  the interface, and ONNX Runtime on the CPU
opening.py   from a bundle to an engine    cuda.py      ONNX Runtime on CUDA
warming.py   the first calls
"""

from __future__ import annotations

from service.engine.engine import Engine
from service.engine.opening import open_engine, resolve_device
from service.engine.runtimes import Runtime

__all__ = ["Engine", "Runtime", "open_engine", "resolve_device"]
