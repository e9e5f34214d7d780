"""The figures of docs/parity.md. Run: python tests/parity/figures.py [mutants] [bounds] [triangle] [speed]"""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).parent))

from parity_networks import Builder, Layer, add_layer, fold, inputs_for, single, small_cnn

from bnfold.folding import onnx_graph
from bnfold.parity.local.checking import check_sites
from bnfold.parity.mutants import self_test
from bnfold.parity.oracle import run_float64
from bnfold.parity.triangle import Corner, compare
from bnfold.parity.weights.certificate import certify, expect
from bnfold.runtime import open_session, run

ROWS = 200


def mutants() -> None:
    """The kill table: what each tier says of every mutant of the specimens."""
    table = self_test(None)
    networks = len({trial.network for trial in table.trials})
    print(f"{len(table.trials):,} mutants of {networks} networks; T3 and T4 on 64 inputs, T2 on 4\n")
    print(f"{table.to_markdown()}\n\n{table.verdict()}; {table.seconds:.0f} s")
    print(f"{len(table.identical)} more are identical after rounding")


def _triangle(model: onnx.ModelProto, folded: onnx.ModelProto, x: dict[str, Any]) -> tuple[Corner, Any, Any]:
    unfolded = run(open_session(model.SerializeToString(), optimise=False), x)
    answers = run(open_session(folded.SerializeToString(), optimise=True), x)
    (corner,) = compare([run_float64(model, x)], [unfolded], [answers])
    return corner, unfolded["output"], answers["output"]


def _networks(count: int, dtype: str) -> Iterator[tuple[onnx.ModelProto, dict[str, Any]]]:
    for seed in range(count):
        model = small_cnn(seed, dtype)
        yield model, inputs_for(model, seed, batch=10)


def _layers(count: int, dtype: str) -> Iterator[tuple[onnx.ModelProto, dict[str, Any]]]:
    rng = np.random.default_rng(0)
    for seed in range(count):
        kind = ("conv", "conv_transpose", "gemm", "matmul")[seed % 4]
        norm = ("bn", "hand", "bn+bn", "hand+bn")[seed // 4 % 4]
        variance = float(rng.choice([1, 1e-4, 1e-10, 1e4])) if dtype == "float32" else 1.0
        model = single(Layer(kind=kind, dims=1 + seed % 3, norm=norm, variance=variance, seed=seed, dtype=dtype))
        yield model, inputs_for(model, seed)


def bounds() -> None:
    """False alarms of T2, and its reach by fan-in."""
    print("right folds: observed difference / bound\n")
    print("| what | sites | alarms | median | largest |\n|---|---|---|---|---|")
    for dtype in ("float32", "float16"):
        for what, networks in (("networks", _networks(300, dtype)), ("single layers", _layers(1200, dtype))):
            ratios, alarms = [], 0
            for model, x in networks:
                reference, folded, _ = fold(model)
                found = check_sites(reference, folded, expect(reference).sites, [x])
                ratios += [site.worst_ratio for site in found]
                alarms += sum(not site.holds for site in found)
            print(f"| {dtype} {what} | {len(ratios)} | {alarms} | {np.median(ratios):.3f} | {max(ratios):.3f} |")
    print("\nfloat32 convolutions 3x3 by fan-in\n\n| fan-in | largest observed / bound |\n|---|---|")
    for inputs in (1, 3, 16, 64, 256):
        model = single(Layer(inputs=inputs, outputs=16))
        reference, folded, _ = fold(model)
        (site,) = check_sites(reference, folded, expect(reference).sites, [inputs_for(model, batch=50)])
        print(f"| {site.fan_in} | {site.worst_ratio:.4f} |")


def triangle() -> None:
    """The spread of right folds in T3."""
    print("right folds: error folded / unfolded against the float64 truth\n")
    print("| what | n | rms: median, 99%, largest | maximum: median, 99%, largest | refused |\n|---|---|---|---|---|")
    for dtype in ("float32", "float16"):
        for what, networks in (("networks", _networks(300, dtype)), ("single layers", _layers(1200, dtype))):
            corners = [_triangle(model, ir.to_proto(fold(model)[1]), x)[0] for model, x in networks]
            rms = [corner.ratio for corner in corners]
            most = [corner.folded_error / corner.unfolded_error for corner in corners if corner.unfolded_error]
            refused = sum(not corner.holds for corner in corners)
            spread = [", ".join(f"{np.percentile(r, q):.2f}" for q in (50, 99, 100)) for r in (rms, most)]
            print(f"| {dtype} {what} | {len(corners)} | {spread[0]} | {spread[1]} | {refused} |")


def speed() -> None:
    """Time of the certificate on some 20 million weights behind which the norms stand, and on other edits."""
    print("| what | values | fold | certificate |\n|---|---|---|---|")
    for what, dtype, make in (
        ("31 convolutions, a norm behind each", "float32", _chain),
        ("10 blocks of 3x3 + 1x1 + identity, 512 channels", "float32", lambda b: _blocks(b, 512, 10)),
        ("norm, dense 4096 x 4096, norm", "float32", lambda b: _dense(b, 4096)),
        ("norm, dense 1024 x 1024, norm", "float64", lambda b: _dense(b, 1024)),
        ("block of 3x3 + 1x1 + identity, 340 channels", "float64", lambda b: _blocks(b, 340, 1)),
    ):
        reference = ir.from_proto(make(Builder(np.random.default_rng(0), dtype)))
        begin = time.perf_counter()
        folded, report, _ = onnx_graph.fold(reference)
        middle = time.perf_counter()
        found = certify(expect(reference, report), folded)
        end = time.perf_counter()
        elements = sum(tensor.distances.elements for tensor in found.tensors)
        print(f"| {what}, {dtype} | {elements:,} | {middle - begin:.1f} s | {end - middle:.1f} s |")


def _chain(build: Builder) -> onnx.ModelProto:
    x, channels = "input", 3
    for at, outputs in enumerate([64] * 4 + [128] * 6 + [256] * 14 + [512] * 7):
        layer = Layer(inputs=channels, outputs=outputs, padding=1, bias=False)
        x, channels = build.node("Relu", [add_layer(build, x, layer, f"layer{at}")]), outputs
    return build.model((None, 3, 32, 32), x, 4)


def _blocks(build: Builder, channels: int, count: int) -> onnx.ModelProto:
    x = "input"
    for at in range(count):
        three = build.constant(f"three{at}", build.weight(channels, channels, 3, 3))
        one = build.constant(f"one{at}", build.weight(channels, channels, 1, 1))
        three = build.batch_norm(build.node("Conv", [x, three], pads=[1] * 4), f"bn3{at}", channels)
        one = build.batch_norm(build.node("Conv", [x, one]), f"bn1{at}", channels)
        total = build.node("Add", [build.node("Add", [three, one]), build.batch_norm(x, f"bn0{at}", channels)])
        x = build.node("Relu", [total])
    return build.model((None, channels, 8, 8), x, 4)


def _dense(build: Builder, size: int) -> onnx.ModelProto:
    x = build.batch_norm("input", "bn", size)
    weight, bias = build.constant("weight", build.weight(size, size)), build.constant("bias", build.normal(size))
    y = build.batch_norm(build.node("Gemm", [x, weight, bias], transB=1), "bn2", size)
    return build.model((None, size), y, 2)


if __name__ == "__main__":
    print(
        f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, onnx {onnx.__version__}\n"
    )
    chosen = sys.argv[1:] or ["mutants", "bounds", "triangle", "speed"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for part in chosen:
            {"mutants": mutants, "bounds": bounds, "triangle": triangle, "speed": speed}[part]()
            print()
