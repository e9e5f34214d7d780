"""The networks of benchmarks/fold_zoo.py: what folds completely does so through both doors, and computes the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bnfold

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from zoo import page, prepare  # noqa: E402 - the benchmark is no package that could be installed
from zoo.doors import MOVES, run_plain  # noqa: E402
from zoo.files import error  # noqa: E402
from zoo.networks import NETWORKS  # noqa: E402

SMALL = ("airbench", "squeezenet_bn", "repvgg_small", "levit_small")
CLEAN = (*SMALL, "resnet18", "mobilenetv3_large_100", "efficientnet_b0", "repvgg_a0", "mobileone_s0", "levit_128s")


def network(name: str):
    found = NETWORKS[name]
    if not found.is_installed:
        pytest.skip(f"{found.source} is not installed; it is no dependency")
    return found


def check_module_door(name: str, moves: str) -> int:
    """Fold in float64 and compare; gives the number of norms of which something is left."""
    module, x = prepare.build(network(name))
    module, x = module.double(), x.double()
    result = bnfold.fold(module, (x,), moves=moves)
    found = error(prepare.run(result.model, x), prepare.run(module, x))
    assert found["max"] <= 1e-10, (name, moves, found)
    return len(result.report.norms) - result.report.counts["folded"]


def check_onnx_door(name: str, moves: str, tmp_path: Path) -> int:
    """Fold a float32 export; the folded one is at most twice as far from the truth. Gives the norms left."""
    module, x = prepare.build(network(name))
    path = tmp_path / "unfolded.onnx"
    bnfold.export_onnx(module, (x,), path)
    truth = prepare.run(module.double(), x.double())
    before = error(run_plain(path.read_bytes(), x.numpy()), truth)["rms"]
    result = bnfold.fold(path, moves=moves)
    after = error(run_plain(result.model.SerializeToString(), x.numpy()), truth)["rms"]
    assert after <= 2 * before, (name, moves, after / before)
    return len(result.report.norms) - result.report.counts["folded"]


def quick_first(names: Iterable[str]) -> list[Any]:
    """Parameters of a test; networks of full size are slow."""
    return [name if NETWORKS[name].source == "zoo" else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", quick_first(CLEAN))
def test_no_norm_is_left_of_networks_that_fold_completely(name: str, tmp_path: Path):
    assert check_module_door(name, "default") == 0
    assert check_onnx_door(name, "default", tmp_path) == 0


@pytest.mark.parametrize("name", quick_first(name for name in NETWORKS if name not in CLEAN))
@pytest.mark.parametrize("moves", MOVES)
def test_both_doors_leave_the_same_number_of_norms(name: str, moves: str, tmp_path: Path):
    assert check_module_door(name, moves) == check_onnx_door(name, moves, tmp_path)


def test_one_wrong_channel_is_seen():
    module, x = prepare.build(network("repvgg_small"))
    module, x = module.double(), x.double()
    broken = bnfold.fold(module, (x,)).model
    with torch.no_grad():
        weight = next(parameter for parameter in broken.parameters() if parameter.ndim == 4)
        weight[3] *= 1.001
    assert error(prepare.run(broken, x), prepare.run(module, x))["max"] > 1e-7


def test_merged_branches_are_a_plain_chain(tmp_path: Path):
    module, x = prepare.build(network("repvgg_small"))
    bnfold.export_onnx(module, (x,), tmp_path / "unfolded.onnx")
    folded = bnfold.fold(tmp_path / "unfolded.onnx").model
    kinds = [node.op_type for node in folded.graph.node]
    assert kinds.count("Conv") == kinds.count("Relu") == 5
    assert "Add" not in kinds


def test_statistics_hide_nothing():
    module, _ = prepare.build(network("airbench"))
    for norm in prepare.norms_of(module):
        assert norm.running_mean.abs().min() > 0
        assert norm.running_var.std() > 0
    module, _ = prepare.build(network("unet"))
    gammas = torch.cat([norm.weight for norm in prepare.norms_of(module)])
    assert 0.2 < (gammas < 0).float().mean() < 0.5


def test_error_of_what_is_not_finite_is_infinite():
    truth = np.ones((2, 3))
    assert error(np.full((2, 3), np.nan), truth)["max"] == float("inf")
    assert error(np.ones((2, 1)), truth)["rms"] == float("inf")


def test_page_says_what_the_results_say():
    results = ROOT / "benchmarks/results"
    latency = results / "fold_zoo_latency.json"
    told = page.render(
        json.loads((results / "fold_zoo.json").read_text()),
        json.loads(latency.read_text()) if latency.exists() else None,
    )
    assert (ROOT / "docs/zoo.md").read_text() == told
