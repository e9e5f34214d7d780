"""The page of `bnfold inspect --html`: well-formed, harmless whatever the names are, and alive in a browser."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from page_reader import BROWSER, HOSTILE, Reader

from bnfold.errors import DataError
from bnfold.folding.facts import Graph, Opaque
from bnfold.pages.drawing import MOST_NODES, draw
from bnfold.pages.inspection import render
from bnfold.pages.page import write_page
from bnfold.pages.text import escaped, number, shortened
from bnfold.reference import inspect


def network(name: str = "net") -> onnx.ModelProto:
    """Conv, BN (folds), Relu, MaxPool, BN of mixed sign (kept), Gelu, Conv, BN in training mode (refused)."""
    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {"w0": random.normal(size=(4, 2, 3, 3)), "w1": random.normal(size=(4, 4, 3, 3))}
    for at in range(3):
        tensors |= {f"{part}{at}": random.normal(size=4) for part in ("gamma", "beta", "mean")}
        tensors[f"variance{at}"] = random.uniform(0.5, 2, 4)

    def norm(at: int, x: str, y: str, **given: Any) -> onnx.NodeProto:
        parts = [f"{part}{at}" for part in ("gamma", "beta", "mean", "variance")]
        outputs = [y, "m", "v"] if given else [y]
        return helper.make_node("BatchNormalization", [x, *parts], outputs, f"{name}.bn{at}", **given)

    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], f"{name}.conv0"), norm(0, "a", "b"),
        helper.make_node("Relu", ["b"], ["c"], f"{name}.relu"),
        helper.make_node("MaxPool", ["c"], ["d"], f"{name}.pool", kernel_shape=[2, 2]), norm(1, "d", "e"),
        helper.make_node("Gelu", ["e"], ["f"], f"{name}.gelu"),
        helper.make_node("Conv", ["f", "w1"], ["g"], f"{name}.conv1"), norm(2, "g", "y", training_mode=1),
    ]  # fmt: skip
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size, None, None])
        for name, size in (("x", 2), ("y", 4))
    )
    constants = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def page_of(name: str = "net") -> str:
    found = inspect(network(name), fold=True, bound=1.0)
    assert found.after is not None
    return render(name, found.report, found.plan, found.before, found.after)


@pytest.mark.parametrize("name", ["net", HOSTILE])
def test_the_page_is_well_formed_and_has_nothing_from_elsewhere(name: str) -> None:
    page = page_of(name)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert reader.tags.count("script") == 1
    assert {"img", "link", "iframe", "object"}.isdisjoint(reader.tags)
    assert {"src", "style", "onerror", "onclick"}.isdisjoint(reader.attributes)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "default-src &#x27;none&#x27;" in page
    assert "\u202e" not in page


def test_norms_are_coloured_by_outcome_before_and_after() -> None:
    before, after = (part.partition("</svg>")[0] for part in page_of().split('class="pane"')[1:])
    kinds = ("folded", "kept", "refused")
    assert [before.count(f'class="r norm {kind}"') for kind in kinds] == [1, 1, 1]
    assert [after.count(f'class="r norm {kind}"') for kind in kinds] == [0, 1, 1]
    assert "took in net.bn0" in after
    assert "took in" not in before


def test_the_table_has_every_norm_with_reason_remedy_and_numbers() -> None:
    reader = Reader()
    reader.feed(page_of())
    for words in ("net.bn0", "into net.conv0", "NEGATIVE_SCALE_THROUGH_MAXPOOL", "TRAINING_MODE", "gamma", "|x| ≤ 1"):
        assert words in reader.text
    assert {"n0", "n1", "n2", "b-n0", "b-n1", "b-n2", "a-n1"} <= set(reader.ids)
    assert "a-n0" not in reader.ids


def test_a_graph_without_norms_has_a_page_too() -> None:
    model = network()
    del model.graph.node[1:]
    model.graph.node[0].output[0] = "y"
    found = inspect(model, fold=True)
    assert found.after is not None
    assert "No norm was found" in render("x", found.report, found.plan, found.before, found.after)


def test_a_graph_that_is_too_large_is_not_drawn_and_that_is_said() -> None:
    nodes = tuple(Opaque(f"n{at}", "n", "Op", ("x",), (f"n{at}",)) for at in range(MOST_NODES + 1))
    assert "too many to draw" in draw(Graph(nodes, ("x",), (), {}), {}, "b-", "t")


def test_texts_are_safe_and_short() -> None:
    assert escaped("<a href='x'>\x00\u2066") == "&lt;a href=&#x27;x&#x27;&gt;\\x00\\u2066"
    assert shortened("layers.0.attention.norm", 12) == "laye…on.norm"
    assert shortened("short", 12) == "short"
    assert (number(None), number(0.00012345)) == ("–", "0.000123")


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    assert write_page("new \ud800", target) == target
    assert target.read_text() == "new \\ud800"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(DataError, match=r"ends with \.html"):
        write_page("x", tmp_path / "model.onnx")
    with pytest.raises(DataError, match="cannot be written"):
        write_page("x", tmp_path / "no/page.html")


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("name", ["net", HOSTILE])
def test_a_browser_shows_the_page_runs_its_script_and_no_other(name: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(page_of(name), encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--dump-dom", f"{page.as_uri()}#q=batchnorm",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ran.stderr, ran.stderr  # no error, nothing that the policy had to stop
    title = re.search(r"<title>(.*?)</title>", ran.stdout, re.DOTALL)
    assert title is not None
    assert title[1] != "owned"
    assert title[1].endswith("what folds")
    # The search of the address was carried out: three rows of the table, three norms before, two after.
    assert len(re.findall(r'class="[^"]*\bhit\b', ran.stdout)) == 8
    assert ">8 found<" in ran.stdout
