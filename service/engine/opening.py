"""From a proven bundle to an engine: which runtime, on which device, and its first calls."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from bnfold.bundle import Bundle, Golden
from bnfold.bundle.manifest import MODEL
from bnfold.errors import BundleError
from bnfold.runtime import open_session
from service.engine.cuda import BoundRuntime, padded_sizes, provider_options
from service.engine.engine import Engine
from service.engine.runtimes import Array, CpuRuntime, Runtime
from service.engine.warming import rows_are_independent, warm_up
from service.http.answers import Headers
from service.protocol.requests import Signature
from service.protocol.tensors import Port
from service.settings import Settings
from service.telemetry.metrics import Metrics

_OPTIONS: dict[str, Any] = {"optimise": True, "threads": 1}  # those of the load gate too
_LONGEST_SAMPLE = 2**12  # numbers; a page with more of them is no page


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """What "auto" means on this host, found by opening a session. Raises BnfoldError for CUDA that does not start.

    Without a driver "auto" is not tried: ONNX Runtime would fill the log with the libraries that it misses.
    """
    if device == "cpu" or (device == "auto" and not _has_driver()):
        return "cpu"
    session = open_session(_smallest_model(), device=device, **_OPTIONS)
    return "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"


def open_engine(
    bundle: Bundle, name: str, version: int, device: Literal["cpu", "cuda"], metrics: Metrics, settings: Settings
) -> Engine:
    """Open a bundle that has passed the load gate, and warm it up. Raises BundleError, BnfoldError."""
    manifest = bundle.manifest
    inputs = tuple(Port.of(spec) for spec in manifest.inputs)
    outputs = tuple(Port.of(spec) for spec in manifest.outputs)
    label = f"{name}/{version}"
    runtime = open_runtime(bundle.session_source(), [port.name for port in outputs], device, settings)
    if runtime.input_names != {port.name for port in inputs}:
        raise BundleError(f"model {label} does not take the inputs that its manifest lists; build it again")
    goldens = bundle.goldens()
    batched = rows_are_independent(runtime, inputs, outputs, goldens, label)
    if batched and goldens and isinstance(runtime, BoundRuntime):
        warm_up(runtime, goldens[0], padded_sizes(settings.max_batch_rows), label)
    digest = manifest.files[MODEL]
    return Engine(
        name=name,
        version=str(version),
        manifest=manifest,
        digest=digest,
        signature=Signature(inputs, outputs, batched, tuple(manifest.labels or ())),
        headers=_proof(name, version, digest, runtime.provider),
        runtime=runtime,
        meter=metrics.meter(name, str(version)),
        sample=_sample(inputs, goldens),
    )


def open_runtime(model: Any, outputs: Sequence[str], device: Literal["cpu", "cuda"], settings: Settings) -> Runtime:
    """The runtime of a device on a model, a path or bytes. Raises BnfoldError; CUDA never becomes the CPU."""
    if device == "cuda":
        session = open_session(model, device="cuda", cuda=provider_options(settings.conv_search), **_OPTIONS)
        return BoundRuntime(session, outputs, "cuda", settings.max_batch_rows)
    session = open_session(model, device="cpu", **_OPTIONS)
    return CpuRuntime(session, outputs, settings.max_batch_rows)


def _sample(inputs: Sequence[Port], goldens: Sequence[Golden]) -> dict[str, Array]:
    """One row of the first golden vector, the whole of it where rows are not counted; empty where it is long."""
    if not goldens:
        return {}
    found = goldens[0].inputs
    sample = {port.name: found[port.name][:1] if port.has_batch else found[port.name] for port in inputs}
    if sum(array.size for array in sample.values()) > _LONGEST_SAMPLE:
        return {}
    return {name: np.nan_to_num(array) for name, array in sample.items()}


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
