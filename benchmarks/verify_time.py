"""How long `bnfold verify` takes on a ResNet-50 at 224 pixels, tier by tier: python benchmarks/verify_time.py

Builds the network with random weights (25.6M, 53 norms, the architecture of He et al. 2015 with the stride in the 3x3
convolution), folds and proves it into a bundle under build/, then runs `bnfold verify --json` on it in a process of
its own and writes benchmarks/results/verify_time.json: what each tier took by the clock, other load included.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import bnfold

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "verify_time.json"
FOLDER = ROOT / "build" / "verify-time"
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
PACKAGES = ("bnfold", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch")


class Drafting:
    """A graph under construction."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def tensor(self, name: str, values: Any) -> str:
        """A stored tensor in float32."""
        self.tensors.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def convolution(self, x: str, inputs: int, outputs: int, kernel: int, stride: int, gain: float = 1.0) -> str:
        """Conv, BatchNormalization."""
        at = len(self.nodes)
        spread = np.sqrt(2 / (inputs * kernel * kernel))
        weight = self.tensor(f"conv{at}.weight", self.rng.normal(size=(outputs, inputs, kernel, kernel)) * spread)
        y = self.node("Conv", x, weight, strides=[stride] * 2, pads=[kernel // 2] * 4)
        gamma = gain * (1 + 0.3 * self.rng.normal(size=outputs))
        parts = (gamma, 0.2 * self.rng.normal(size=outputs), 0.3 * self.rng.normal(size=outputs))
        names = [self.tensor(f"bn{at}.{key}", part) for key, part in zip(("gamma", "beta", "mean"), parts, strict=True)]
        variance = self.tensor(f"bn{at}.variance", self.rng.uniform(0.5, 2, size=outputs))
        return self.node("BatchNormalization", y, *names, variance, epsilon=1e-5)

    def block(self, x: str, inputs: int, width: int, stride: int) -> str:
        """A bottleneck with its shortcut."""
        y = self.node("Relu", self.convolution(x, inputs, width, 1, 1))
        y = self.node("Relu", self.convolution(y, width, width, 3, stride))
        y = self.convolution(y, width, 4 * width, 1, 1, 0.3)
        same = inputs == 4 * width and stride == 1
        shortcut = x if same else self.convolution(x, inputs, 4 * width, 1, stride)
        return self.node("Relu", self.node("Add", y, shortcut))


def resnet50() -> onnx.ModelProto:
    """The network, (N, 3, 224, 224) to (N, 1000)."""
    draft = Drafting()
    x = draft.node("Relu", draft.convolution("input", 3, 64, 7, 2))
    x = draft.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inputs = 64
    for stage, (width, blocks) in enumerate(STAGES):
        for at in range(blocks):
            x = draft.block(x, inputs, width, 2 if at == 0 and stage > 0 else 1)
            inputs = 4 * width
    x = draft.node("Flatten", draft.node("GlobalAveragePool", x))
    weight = draft.tensor("fc.weight", draft.rng.normal(size=(1000, inputs)) * 0.02)
    bias = draft.tensor("fc.bias", draft.rng.normal(size=1000) * 0.1)
    draft.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["output"], transB=1))
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        draft.nodes,
        "resnet50",
        [helper.make_tensor_value_info("input", kind, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("output", kind, ["N", 1000])],
        draft.tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def bundle() -> Path:
    """The bundle, built where it is not there yet."""
    folder = FOLDER / "resnet50" / "1"
    if not folder.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        onnx.save(resnet50(), FOLDER / "resnet50.onnx")
        bnfold.build_bundle(FOLDER / "resnet50.onnx", folder, output_kind="logits")
    return folder


def main() -> int:
    """Build, verify, write."""
    folder = bundle()
    begun = time.perf_counter()
    words = [sys.executable, "-m", "bnfold", "verify", str(folder), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode not in (0, 1, 2) or not done.stdout:
        print(done.stderr, file=sys.stderr)
        return 1
    report = json.loads(done.stdout)
    tiers = [
        {"tier": tier["tier"], "status": tier["status"], "seconds": tier["seconds"], "headline": tier["headline"]}
        for tier in report["tiers"]
    ]
    asked = sum(tier["seconds"] for tier in tiers if tier["tier"] in ("T0", "T1", "T2", "T3", "T3b"))
    result = {
        "command": "python benchmarks/verify_time.py", "n": 1, "holds": report["holds"], "seconds": round(seconds, 1),
        "seconds of T0, T1, T2, T3, T3b": round(asked, 1), "tiers": tiers, "load": os.getloadavg()[0],
        "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for tier in tiers:
        print(f"{tier['tier']:4} {tier['status']:11} {tier['seconds']:7.1f} s  {tier['headline']}")
    print(f"proof (T0, T1, T2, T3, T3b): {asked:.1f} s; all: {seconds:.1f} s")
    return 0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
