"""How much memory the fold of a large file takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_networks import FLOAT, Builder

LAYERS, WIDTH = 4, 3072  # 36 MiB a layer

MEASURE = """
import sys
from pathlib import Path
import bnfold

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

bnfold.fold(sys.argv[1])
before = peak()
result = bnfold.fold(sys.argv[2])
assert all(row.outcome == "folded" for row in result.report.norms)
print((peak() - before) * 1024)
"""


def stack(layers: int, width: int) -> onnx.ModelProto:
    b = Builder(FLOAT)
    x = b.input("N", width)
    for _ in range(layers):
        weight = b.const(np.tile(b.values(width), (width, 1)))  # drawing them all would take longer than the fold
        x = b.node("Relu", b.bn(b.node("Gemm", x, weight, transB=1), width))
    return b.model(x)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux")
@pytest.mark.parametrize("external", [False, True])
def test_the_fold_of_a_file_takes_less_than_two_and_a_half_times_its_weights(tmp_path, external):
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    onnx.save(stack(1, 8), small)
    onnx.save(stack(LAYERS, WIDTH), large, save_as_external_data=external, location="large.data")
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    weights = 4 * LAYERS * WIDTH * WIDTH
    assert weights < int(done.stdout) < 2.5 * weights
