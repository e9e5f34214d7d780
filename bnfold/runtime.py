"""The one place that opens ONNX Runtime sessions, so that each caller says how and nobody falls back silently."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bnfold.errors import BnfoldError, first_line

if TYPE_CHECKING:
    import onnxruntime as ort

Device = Literal["auto", "cpu", "cuda"]
Array = np.ndarray[Any, np.dtype[Any]]


class NoCuda(BnfoldError):
    """CUDA was asked for and did not start. reason: why, as the runtime has it."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"device 'cuda' was asked for, but CUDA did not start ({reason}); "
            "install the extra `cuda` and a driver, or use --device cpu"
        )
        self.reason = reason


# ONNX Runtime's severity scale: 0 verbose .. 4 fatal; warnings are its default.
_WARNINGS, _SILENT = 2, 4


def check_install() -> None:
    """Raise BnfoldError when both builds of ONNX Runtime are installed.

    They write to the same folder, so the second one overwrites the first without a word, and removing one of them
    breaks the other.
    """
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(found) == 2:
        raise BnfoldError(
            f"the environment has both {found[0]} and {found[1]}, which overwrite each other; "
            "uninstall both, then install one of them"
        )


@functools.cache
def _check_install_once() -> None:
    """As `check_install`, whose reading of packages takes as long as opening a small model."""
    check_install()


def open_session(
    model: Path | bytes,
    *,
    optimise: bool,
    device: Device = "cpu",
    threads: int = 1,
    tf32: bool = False,
    cuda: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Open a session on a model file or its bytes.

    `optimise=False` turns every graph optimisation off: the reference side of a comparison must run so, because
    ONNX Runtime would otherwise fold it too and the comparison would prove nothing. `device="cuda"` gives CUDA or a
    NoCuda; `"auto"` takes CUDA where it starts and the CPU otherwise (`session.get_providers()` tells which).
    tf32: whether CUDA may round the factors of float32 products to TF32, as the runtime does by itself; off here.
    cuda: more options of the CUDA provider; a session with them refuses a model of which a node would run on the CPU.
    """
    _check_install_once()
    import onnxruntime as ort

    source = model if isinstance(model, bytes) else str(model)
    label = "the model" if isinstance(model, bytes) else str(model)
    if device in ("cuda", "auto"):
        options = _options(ort, optimise, threads)
        if cuda is not None:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = {"use_tf32": "1" if tf32 else "0", **(cuda or {})}
        session = _open_cuda(ort, source, options, provider, required=device == "cuda")
        if session is not None:
            return session
    try:
        return _open(ort, source, _options(ort, optimise, threads), ["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime raises its own types, generated at run time
        raise BnfoldError(f"{label} cannot be opened by ONNX Runtime: {first_line(problem)}") from problem


def run(session: ort.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a session on named arrays; gives its outputs by name. Raises BnfoldError when the runtime refuses."""
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except Exception as problem:
        raise BnfoldError(f"ONNX Runtime cannot run the model on this input: {first_line(problem)}") from problem


def _open(ort: Any, source: bytes | str, options: Any, providers: list[Any]) -> Any:
    # Its fallback prints to stdout and tries other providers, for a session and for each run of it.
    return ort.InferenceSession(source, options, providers=providers, enable_fallback=0)


def _options(ort: Any, optimise: bool, threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT  # what fails is raised, and said in one sentence
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    return options


def _open_cuda(ort: Any, source: bytes | str, options: Any, provider: Mapping[str, str], *, required: bool) -> Any:
    providers: list[Any] = [("CUDAExecutionProvider", dict(provider))]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        reason = "this build of ONNX Runtime has no CUDA provider"
    else:
        missing = _preload_cuda(ort)
        # The runtime logs the failure in eight lines before any session has its own severity.
        ort.set_default_logger_severity(_SILENT)
        try:
            session = _open(ort, source, options, providers)
        except Exception as problem:
            reason = first_line(problem)
        else:
            if "CUDAExecutionProvider" in session.get_providers():
                return session
            reason = missing or f"the session came up on {', '.join(session.get_providers())}"
        finally:
            ort.set_default_logger_severity(_WARNINGS)
    if required:
        raise NoCuda(reason)
    return None


def _preload_cuda(ort: Any) -> str:
    """Load the CUDA and cuDNN libraries of the extra `cuda`; gives what was said of the first one that is missing."""
    if not hasattr(ort, "preload_dlls"):
        return ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints, one line a library
        ort.preload_dlls()
    return said.getvalue().strip().partition("\n")[0][:300]
