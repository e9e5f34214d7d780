"""One proven version in ONNX Runtime: one session, shared by all workers, one thread a call."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from bnfold.bundle import Bundle, Golden, Manifest
from bnfold.bundle.manifest import MODEL
from bnfold.errors import BundleError
from bnfold.runtime import open_session, run
from service.answers import Headers
from service.errors import ModelFault
from service.meter import Meter
from service.metrics import Metrics
from service.protocol import Signature
from service.tensors import Array, Port

_logger = logging.getLogger(__name__)

# Rows of one model that are run together may differ from rows run alone by rounding, as other kernels are chosen;
# rows that leak into each other differ by as much as they are large.
_ROUNDING = 1e-3
_PROBED_ROWS = 4
_CPU = "CPUExecutionProvider"
_OPTIONS: dict[str, Any] = {"optimise": True, "threads": 1}  # those of the load gate too


class Session(Protocol):
    """What is used here of a session of ONNX Runtime; any thread may call it."""

    def run(self, names: Sequence[str], inputs: Mapping[str, Array], options: Any = None) -> list[Array]:
        """Run the graph."""


@dataclass(eq=False)
class Engine:
    """A version that is served.

    digest: sha256 of the model.onnx that the session was opened on. provider: what the session runs on, not what it
    was asked for. headers: the proof that goes with every prediction. large_rows: above so many rows the memory of a
    call is given back after it. in_flight: requests that hold it, counted on the event loop.
    """

    name: str
    version: str
    manifest: Manifest
    digest: str
    provider: str
    signature: Signature
    headers: Headers
    session: Session
    meter: Meter
    large_rows: int
    in_flight: int = 0

    @property
    def label(self) -> str:
        """name/version."""
        return f"{self.name}/{self.version}"

    @property
    def batchable(self) -> bool:
        """Whether rows of different requests may share a call."""
        return self.signature.batched

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model. inputs: by name, of the ports' dtypes and shapes. Raises ModelFault."""
        names = [port.name for port in self.signature.outputs]
        is_large = self.batchable and len(next(iter(inputs.values()))) > self.large_rows
        options = _shrinking() if is_large and self.provider == _CPU else None
        try:
            return dict(zip(names, self.session.run(names, inputs, options), strict=True))
        except Exception as problem:  # ONNX Runtime raises its own types, generated at run time
            _logger.error("model %s failed: %s", self.label, problem)
            raise ModelFault(f"model {self.label} failed on this input; the server's log says why") from problem

    def close(self) -> None:
        """Let go of the session, whose memory is freed once no thread is inside it; `run` must not be called again."""
        del self.session

    def count_batch(self, rows: int, seconds: float) -> None:
        """Told by the batcher of every run."""
        self.meter.count_batch(rows, 0.0, seconds, 0.0)


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """What "auto" means on this host, found by opening a session. Raises BnfoldError for CUDA that does not start.

    Without a driver "auto" is not tried: ONNX Runtime would fill the log with the libraries that it misses.
    """
    if device == "cpu" or (device == "auto" and not _has_driver()):
        return "cpu"
    session = open_session(_smallest_model(), device=device, **_OPTIONS)
    return "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"


def open_engine(
    bundle: Bundle, name: str, version: int, device: Literal["cpu", "cuda"], metrics: Metrics, large_rows: int
) -> Engine:
    """Open the session of a bundle that has passed the load gate. Raises BundleError, BnfoldError."""
    manifest = bundle.manifest
    inputs = tuple(Port.of(spec) for spec in manifest.inputs)
    outputs = tuple(Port.of(spec) for spec in manifest.outputs)
    session = open_session(bundle.session_source(), device=device, **_OPTIONS)
    names = {port.name for port in inputs}
    if {entry.name for entry in session.get_inputs()} != names:
        raise BundleError(f"model {name}/{version} does not take the inputs that its manifest lists; build it again")
    batched = _rows_are_independent(session, inputs, outputs, bundle.goldens(), f"{name}/{version}")
    provider, digest = session.get_providers()[0], manifest.files[MODEL]
    return Engine(
        name=name,
        version=str(version),
        manifest=manifest,
        digest=digest,
        provider=provider,
        signature=Signature(inputs, outputs, batched, tuple(manifest.labels or ())),
        headers=_proof(name, version, digest, provider),
        session=session,
        meter=metrics.meter(name, str(version)),
        large_rows=large_rows,
    )


def _shrinking() -> Any:
    """Run options that give the arena's unused memory back: one batch of 512 pictures kept 0.5 GB for ever."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _proof(name: str, version: int, digest: str, provider: str) -> Headers:
    return [
        (b"bnfold-model", name.encode("ascii")),
        (b"bnfold-model-version", str(version).encode("ascii")),
        (b"bnfold-model-digest", f"sha256:{digest}".encode("ascii")),
        (b"bnfold-provider", provider.encode("ascii")),
    ]


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _smallest_model() -> bytes:
    """Identity on one float: a session on it tells whether a provider starts."""
    from onnx import TensorProto, helper

    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([node], "identity", [x], [y])
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def _rows_are_independent(
    session: Session,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    goldens: Sequence[Golden],
    label: str,
) -> bool:
    """Whether a row gives the same alone as in a batch, tried on golden vectors; it also warms the session up."""
    if not all(port.has_batch for port in (*inputs, *outputs)):
        return False
    for golden in goldens:
        batch = _at_least_two_rows(golden.inputs)
        rows = len(next(iter(batch.values())))
        if any(len(array) != rows for array in batch.values()):
            return False
        together = run(session, batch)
        for row in {round(at) for at in np.linspace(0, rows - 1, _PROBED_ROWS)}:
            alone = run(session, {name: array[row : row + 1] for name, array in batch.items()})
            if not all(_is_row(together[name], row, rows, alone[name]) for name in alone):
                _logger.warning("model %s mixes the rows of a batch; each request to it runs alone", label)
                return False
    return True


def _at_least_two_rows(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: np.ascontiguousarray(array if len(array) > 1 else np.concatenate([array, np.zeros_like(array)]))
        for name, array in inputs.items()
    }


def _is_row(together: Array, row: int, rows: int, alone: Array) -> bool:
    if together.shape[:1] != (rows,) or alone.shape != (1, *together.shape[1:]):
        return False
    found, expected = together[row].astype(np.float64), alone[0].astype(np.float64)
    scale = np.abs(expected).max(initial=0.0) + _ROUNDING * np.abs(together.astype(np.float64)).max(initial=0.0)
    return bool((np.abs(found - expected) <= _ROUNDING * scale).all())
