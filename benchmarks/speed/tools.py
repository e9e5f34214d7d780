"""Tools that fold batch norm into what stands before it: bytes of a model in, bytes of a model out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx


def _bnfold(data: bytes) -> bytes:
    import bnfold

    return bytes(bnfold.fold(data).model)


def _bnfold_proto(data: bytes) -> bytes:
    """By way of a ModelProto, which protocol buffers read and write."""
    import bnfold

    return bytes(bnfold.fold(onnx.load_from_string(data)).model.SerializeToString())


def _onnxslim(data: bytes) -> bytes:
    import onnxslim

    return onnxslim.slim(onnx.load_from_string(data)).SerializeToString()


def _onnxsim(data: bytes) -> bytes:
    import onnxsim

    return onnxsim.simplify(onnx.load_from_string(data))[0].SerializeToString()


def _onnxoptimizer(data: bytes) -> bytes:
    import onnxoptimizer

    return onnxoptimizer.optimize(onnx.load_from_string(data), ["fuse_bn_into_conv"]).SerializeToString()


def _onnxscript(data: bytes) -> bytes:
    """Its rewriter with the default rules, which fold norms among much else."""
    from onnxscript import rewriter

    return rewriter.rewrite(onnx.load_from_string(data)).SerializeToString()


def _onnxscript_rule(data: bytes) -> bytes:
    """The rules of its rewriter that fold norms, and nothing else."""
    import onnx_ir as ir
    from onnxscript.rewriter.rules.common import _fuse_batchnorm

    model = ir.from_proto(onnx.load_from_string(data))
    _fuse_batchnorm.rules.apply_to_model(model)
    return ir.to_proto(model).SerializeToString()


def _onnxruntime(data: bytes) -> bytes:
    """Its basic optimisations on one thread, saved as a model."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])  # noqa: TID251 - the peer itself
        return path.read_bytes()


TOOLS: dict[str, Callable[[bytes], bytes]] = {
    "bnfold": _bnfold,
    "bnfold_proto": _bnfold_proto,
    "onnxoptimizer": _onnxoptimizer,
    "onnxruntime": _onnxruntime,
    "onnxscript": _onnxscript,
    "onnxscript_rule": _onnxscript_rule,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
}
