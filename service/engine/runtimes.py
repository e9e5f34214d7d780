"""What the engine asks of a runtime, and ONNX Runtime on the CPU as the first that gives it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Runtime(Protocol):
    """One opened model. Any thread may call `run`, several at once."""

    @property
    def provider(self) -> str:
        """What it runs on in truth, in ONNX Runtime's words."""

    @property
    def input_names(self) -> frozenset[str]:
        """The inputs that the model takes."""

    def run(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """The outputs by name, in memory of their own. rows: along axis 0, 0 where the axis is no batch.

        Raises whatever the runtime raises.
        """

    def close(self) -> None:
        """Give the memory back; nobody runs it any more."""


class Session(Protocol):
    """What is used here of a session of ONNX Runtime; any thread may call it."""

    def run(self, names: Sequence[str], inputs: Mapping[str, Array], options: Any = None) -> list[Array]:
        """Run the graph."""

    def get_inputs(self) -> Sequence[Any]:
        """The inputs, each with its name."""

    def get_providers(self) -> Sequence[str]:
        """What it runs on, the first before the others."""


class CpuRuntime:
    """A session on the CPU, one thread a call.

    large_rows: above so many rows the memory of a call is given back after it.
    """

    __slots__ = ("_large_rows", "_names", "_session", "input_names", "provider")

    def __init__(self, session: Session, outputs: Sequence[str], large_rows: int) -> None:
        self._session: Session | None = session
        self._names = list(outputs)
        self._large_rows = large_rows
        self.provider: str = session.get_providers()[0]
        self.input_names = frozenset(entry.name for entry in session.get_inputs())

    def run(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Run the graph; see Runtime.run."""
        if self._session is None:
            raise RuntimeError("the session is closed")
        options = _shrinking() if rows > self._large_rows else None
        return dict(zip(self._names, self._session.run(self._names, inputs, options), strict=True))

    def close(self) -> None:
        """Let the session go."""
        self._session = None


@functools.cache
def _shrinking() -> Any:
    """Run options that give the arena's unused memory back: one batch of 512 pictures kept 0.5 GB for ever."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
