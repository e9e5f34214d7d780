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

from parity_mutants import FAULTS, FORMULAS, refold, spoil
from parity_networks import Builder, Layer, add_layer, fold, inputs_for, single, small_cnn

from bnfold.parity.certificate import certify, expect
from bnfold.parity.decisions import decide
from bnfold.parity.local import check_sites
from bnfold.parity.oracle import run_float64
from bnfold.parity.triangle import Corner, compare
from bnfold.runtime import open_session, run

ROWS = 200


def mutants() -> None:
    """What each tier says of each mutant of one network."""
    model = small_cnn()
    folded = ir.to_proto(fold(model)[1])
    site = expect(ir.from_proto(model)).sites[1]
    x = inputs_for(model, batch=ROWS)
    print(f"mutants of a network with 4 norms; T2 to T4 on {ROWS} inputs; ** marks what the tier catches\n")
    print(
        "| mutant | T1: worst ulp, values wrong | T2: worst difference / bound | T3: rms error / unfolded | T4: top-1 |"
    )
    print("|---|---|---|---|---|")
    print(_row("none", model, folded, x))
    for name, formula in FORMULAS.items():
        print(_row(name, model, refold(model, folded, formula), x))
    for fault in FAULTS:
        print(_row(f"{fault} (one site)", model, spoil(folded, site, fault), x))


def _row(name: str, model: onnx.ModelProto, folded: onnx.ModelProto, x: dict[str, Any]) -> str:
    reference, shipped = ir.from_proto(model), ir.from_proto(folded)
    expectation = expect(reference)
    certificate = certify(expectation, shipped)
    sites = check_sites(reference, shipped, expectation.sites, [x])
    corner, unfolded, answers = _triangle(model, folded, x)
    decisions = decide(unfolded, answers)
    wrong = sum(tensor.distances.not_nearest for tensor in certificate.tensors)
    total = sum(tensor.distances.elements for tensor in certificate.tensors)
    worst = max(site.worst_ratio for site in sites)
    cells = (
        (f"{certificate.worst_ulp:,.4g}, {wrong:,} of {total:,}", certificate.holds),
        (f"{worst:,.3g}", all(site.holds for site in sites)),
        (f"{corner.ratio:,.3g}" if corner.ratio == corner.ratio else "NaN", corner.holds),
        (f"{decisions.agreement:.1%}", decisions.holds),
    )
    return f"| {name} | " + " | ".join(text if holds else f"**{text}**" for text, holds in cells) + " |"


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
    """Time of the certificate on 26 million weights."""
    build = Builder(np.random.default_rng(0))
    x, channels = "input", 3
    for at, outputs in enumerate([64] * 4 + [128] * 6 + [256] * 14 + [512] * 7):
        layer = Layer(inputs=channels, outputs=outputs, padding=1, bias=False)
        x, channels = build.node("Relu", [add_layer(build, x, layer, f"layer{at}")]), outputs
    reference, folded, report = fold(build.model((None, 3, 32, 32), x, 4))
    begin = time.perf_counter()
    found = certify(expect(reference, report), folded)
    seconds = time.perf_counter() - begin
    elements = sum(tensor.distances.elements for tensor in found.tensors)
    print(f"certificate of {elements:,} values: {seconds:.1f} s, worst {found.worst_ulp:.6f} ulp")


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
