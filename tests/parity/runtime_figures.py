"""The figures of docs/runtimes.md: how right folds spread over the cells of T5, TF32 played by the CPU.

python tests/parity/runtime_figures.py [networks]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import onnx
from parity_networks import small_cnn
from parity_tf32 import in_tf32

from bnfold.build import build_bundle
from bnfold.parity.evidence import Evidence
from bnfold.parity.runtimes import RuntimeMatrix, check_runtimes, places
from bnfold.parity.runtimes import matrix as matrix_module
from bnfold.runtime import open_session


class Played:
    """A session of the CPU in the place of one of CUDA's."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return ["played by the CPU"]


def opened(model: bytes, *, device: str, tf32: bool, **options: Any) -> Any:
    if device == "cpu":
        return open_session(model, device="cpu", **options)
    if tf32:
        model = in_tf32(onnx.ModelProto.FromString(model)).SerializeToString()
    return Played(open_session(model, device="cpu", **options))


def matrix(seed: int, dtype: str) -> RuntimeMatrix:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "net.onnx"
        onnx.save(small_cnn(seed=seed, dtype=dtype), source)
        rows = np.random.default_rng(seed).random((120, 1, 8, 8)).astype(dtype)
        bundle = build_bundle(source, Path(folder) / "models" / "net", data=(rows, None), output_kind="logits")
        return check_runtimes(Evidence(bundle))


def spread(dtype: str, count: int) -> None:
    ratios: dict[str, list[float]] = defaultdict(list)
    apart: dict[str, list[float]] = defaultdict(list)
    alarms: list[str] = []
    for seed in range(count):
        found = matrix(seed, dtype)
        alarms += [f"seed {seed}: {cell.sentence()}" for cell in found.measured if cell.holds is not True]
        alarms += [f"seed {seed}: {one.sentence()}" for one in found.invariances if one.holds is not True]
        for cell in found.measured:
            if cell.worst is not None:
                ratios[f"{cell.place}, {'all' if cell.optimised else 'off'}"].append(cell.worst.ratio)
        for one in found.invariances:
            apart[f"{one.place}, {'all' if one.optimised else 'off'}"].append(one.ulp)
    for where, values in ratios.items():
        middle, high, most = np.quantile(values, [0.5, 0.99, 1])
        same = sum(ulp == 0 for ulp in apart[where])
        print(
            f"| {dtype}, {where} | {len(values)} | {middle:.2f}, {high:.2f}, {most:.2f} | "
            f"{same} of {len(apart[where])} | {max(apart[where]):.3g} |"
        )
    print(f"{dtype}: {len(alarms)} alarms", *alarms[:5], sep="\n  ")


def main() -> None:
    networks = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    every = places.list_places()
    places.open_session = opened
    begun = time.monotonic()
    matrix_module.list_places = lambda: tuple(place for place in every if place.tf32 is not False)
    spread("float32", networks)
    matrix_module.list_places = lambda: tuple(place for place in every if place.device == "cpu")
    spread("float16", networks // 4)
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
