"""One proven version as it is served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bnfold.bundle import Manifest
from service.engine.runtimes import Array, Runtime
from service.errors import ModelFault
from service.http.answers import Headers
from service.protocol.requests import Signature
from service.queueing.backlog import Backlog
from service.telemetry.meter import Meter

_logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Engine:
    """A version that is served.

    digest: sha256 of the model.onnx in use. headers: the proof that goes with every prediction; head: their lines.
    runtime: what computes.
    sample: one row of a golden vector, for examples.
    in_flight: requests that use it now; idle is set while there are none. Both belong to the event loop.
    """

    name: str
    version: str
    manifest: Manifest
    digest: str
    signature: Signature
    headers: Headers
    runtime: Runtime
    meter: Meter
    sample: Mapping[str, Array] = field(default_factory=dict)
    head: bytes = field(init=False)
    label: str = field(init=False)
    batchable: bool = field(init=False)
    provider: str = field(init=False)
    count_batch: Callable[[int, float, float, float, int], None] = field(init=False)
    backlog: Backlog = field(init=False, default_factory=Backlog)
    in_flight: int = field(init=False, default=0)
    idle: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.head = b"".join([b"%b: %b\r\n" % header for header in self.headers])
        self.label = f"{self.name}/{self.version}"
        self.batchable = self.signature.batched
        self.provider = self.runtime.provider
        self.count_batch = self.meter.count_batch  # by the batcher, of every run
        self.idle.set()

    def take(self) -> None:
        """One more request uses it."""
        if not self.in_flight:
            self.idle.clear()
        self.in_flight += 1

    def release(self) -> None:
        """One less."""
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model, in any thread. inputs: by name, of the ports' dtypes and shapes. Raises ModelFault."""
        rows = len(next(iter(inputs.values()))) if self.batchable else 0
        try:
            return self.runtime.run(inputs, rows)
        except Exception as problem:  # ONNX Runtime raises its own types, generated at run time
            _logger.error("model %s failed: %s", self.label, problem)
            raise ModelFault(f"model {self.label} failed on this input; the server's log says why") from problem

    def close(self) -> None:
        """Give the memory back. Nobody uses it any more: wait for `idle` first."""
        self.runtime.close()
