"""Two small residual networks on 3x32x32 (12 KB of float32), as bundles: random weights, since only the cost counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from speed.models import Network

import bnfold

SHAPE = (3, 32, 32)
CLASSES = 10
# Channels of the three stages. The first is ResNet-8 of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597).
WIDTHS = {"resnet8": (16, 32, 64), "resnet8-wide": (32, 64, 128)}


def resnet8(widths: tuple[int, ...]) -> onnx.ModelProto:
    """Nine convolutions with a batch norm each: a stem and three residual blocks, (N, 3, 32, 32) to (N, 10)."""
    net = Network("N", *SHAPE)
    x, inputs = net.add("Relu", net.conv("x", SHAPE[0], widths[0], 3)), widths[0]
    for stage, width in enumerate(widths):
        stride = 2 if stage else 1
        y = net.conv(net.add("Relu", net.conv(x, inputs, width, 3, stride)), width, width, 3)
        x = net.add("Relu", net.add("Add", y, net.conv(x, inputs, width, 1, stride) if stage else x))
        inputs = width
    x = net.add("Flatten", net.add("GlobalAveragePool", x), axis=1)
    return net.model(net.dense(x, inputs, CLASSES), ("N", CLASSES))


def build(repository: Path) -> None:
    """Fold and prove what is missing in the repository."""
    for name, widths in WIDTHS.items():
        folder = repository / name / "1"
        if not folder.is_dir():
            bnfold.build_bundle(resnet8(widths), folder, output_kind="logits")


def sample() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The one input that everybody gets, (1, 3, 32, 32)."""
    return np.random.default_rng(1).standard_normal((1, *SHAPE), np.float32)
