"""The bundle that the repository carries, so that `bnfold serve` answers at once in a checkout."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest

from bnfold.bundle import Bundle, load_bundle
from bnfold.folding import onnx_graph
from bnfold.folding.onnx_file import load_model, to_proto
from bnfold.folding.report import FoldReport
from bnfold.parity import verify

PATH = Path(__file__).parents[1] / "models/digits-cnn/1"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(PATH)


def test_folding_its_reference_again_gives_its_model_bit_for_bit(bundle: Bundle) -> None:
    folded, report, fold_map = onnx_graph.fold(load_model(bundle.reference_path))
    shipped = onnx.load(bundle.model_path)
    assert to_proto(folded).graph == shipped.graph
    stored = FoldReport.from_dict(bundle.fold_report())
    assert report == dataclasses.replace(stored, bounds=())
    assert [bound.norms for bound in stored.bounds] == [(row.name,) for row in report.norms]
    assert [dict(entry) for entry in bundle.manifest.fold_map] == list(fold_map)


def test_it_says_of_every_parameter_of_the_checkpoint_where_it_went(bundle: Bundle) -> None:
    fates = {item.name: item.fate for item in bundle.manifest.parameters}
    made_by_the_exporter = {name for name in bundle.manifest.source_tensors if "." not in name}
    assert bundle.manifest.source_tensors.keys() - made_by_the_exporter <= fates.keys()
    assert {name for name, fate in fates.items() if fate == "gone"} == {
        name for name in fates if name.endswith("num_batches_tracked")
    }


def test_its_parity_holds_here_and_now(bundle: Bundle) -> None:
    report = verify(bundle)
    assert report.exit_code == 0, report.to_table()


def test_it_was_trained_well_enough_to_be_shown(bundle: Bundle) -> None:
    golden = bundle.goldens()[0]
    assert golden.labels is not None
    assert len(golden.labels) == 359
    assert (golden.truth["logits"].argmax(1) == golden.labels).mean() >= 0.985


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in PATH.rglob("*") if path.is_file()) < 500_000
