"""Every datatype that the runtime takes, through every stock client, in every way that it can be sent and asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from service_clients import KINDS, Client, Doors, both_doors, client_of
from service_networks import save

from bnfold import build_bundle
from bnfold.datatypes import WIRE

ROWS, WIDTH = 48, 40
DATATYPES = tuple(WIRE)


def network() -> onnx.ModelProto:
    """x (N, 3) -> BatchNormalization -> y; and beside it each datatype through Identity: in_T (N, K) -> out_T."""
    norm = [helper.make_tensor(name, TensorProto.FLOAT, [3], [1.0, 0.5, 2.0]) for name in ("g", "b", "m", "v")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], np.eye(3).ravel().tolist())
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["linear"], name="linear"),
        helper.make_node("BatchNormalization", ["linear", "g", "b", "m", "v"], ["y"], name="norm"),
    ]
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3])] for name in "xy"]
    for datatype in DATATYPES:
        names = [f"in_{datatype}", f"out_{datatype}"]
        nodes.append(helper.make_node("Identity", names[:1], names[1:], name=datatype))
        kind = helper.np_dtype_to_tensor_dtype(WIRE[datatype])
        for side, name in zip(ports, names, strict=True):
            side.append(helper.make_tensor_value_info(name, kind, ["N", "K"]))
    graph = helper.make_graph(nodes, "types", *ports, [weight, *norm])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def values(datatype: str, rows: int = ROWS, *, finite: bool) -> np.ndarray:
    """Numbers of a datatype, its ends among them; finite: without NaN and infinity."""
    dtype, generator = WIRE[datatype], np.random.default_rng(7)
    if dtype.kind == "b":
        return generator.integers(0, 2, (rows, WIDTH)).astype(bool)
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if dtype.kind == "f":
        found = generator.normal(size=(rows, WIDTH)).astype(dtype)
        ends = [limits.max, limits.min, limits.smallest_subnormal, -0.0, *(() if finite else (np.nan, np.inf, -np.inf))]
    else:
        found = generator.integers(limits.min, limits.max, (rows, WIDTH), dtype=dtype, endpoint=True)
        ends = [limits.max, limits.min, 0]
    found[0, : len(ends)] = np.array(ends, dtype)
    return found


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    root: Path = tmp_path_factory.mktemp("types")
    generator = np.random.default_rng(0)
    samples = {f"in_{each}": generator.integers(0, 2, (4, WIDTH)).astype(WIRE[each]) for each in DATATYPES}
    np.savez(root / "samples.npz", x=np.ones((4, 3), np.float32), **samples)
    build_bundle(save(network(), root / "types.onnx"), root / "models" / "types", data=root / "samples.npz")
    with both_doors(root / "models", root) as started:
        yield started


def ask(client: Client, compression: str | None, *, binary_in: bool, binary_out: bool, finite: bool) -> dict[str, Any]:
    """All datatypes in one request; the answers by datatype."""
    x = np.ones((ROWS, 3), np.float32)
    inputs = [client.tensor("x", x, "FP32", binary=binary_in)]
    wanted = []
    for datatype in DATATYPES:
        half = datatype == "FP16"  # JSON cannot carry it
        array = values(datatype, finite=finite)
        inputs.append(client.tensor(f"in_{datatype}", array, datatype, binary=binary_in or half))
        wanted.append(client.wanted(f"out_{datatype}", binary=binary_out or half))
    result = client.infer("types", inputs, compression, outputs=wanted)
    return {datatype: result.as_numpy(f"out_{datatype}") for datatype in DATATYPES}


def assert_same(found: dict[str, Any], *, finite: bool) -> None:
    for datatype, array in found.items():
        sent = values(datatype, finite=finite)
        assert array.dtype == sent.dtype, datatype
        assert array.shape == sent.shape, datatype
        assert array.tobytes() == sent.tobytes(), datatype


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("kind", KINDS)
def test_binary_data_comes_back_bit_for_bit(kind: str, compression: str | None, doors: Doors):
    with client_of(kind, doors) as client:
        found = ask(client, compression, binary_in=True, binary_out=True, finite=False)
    assert np.isnan(found["FP16"]).any()
    assert_same(found, finite=False)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize(("binary_in", "binary_out"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("kind", ["http", "http.aio"])
def test_json_comes_back_bit_for_bit(
    kind: str, binary_in: bool, binary_out: bool, compression: str | None, doors: Doors
):
    with client_of(kind, doors) as client:
        found = ask(client, compression, binary_in=binary_in, binary_out=binary_out, finite=True)
    assert_same(found, finite=True)


def test_a_bit_that_changes_would_be_noticed(doors: Doors):
    with client_of("http", doors) as client:
        found = ask(client, None, binary_in=True, binary_out=True, finite=False)
    for datatype in DATATYPES:
        changed = {**found, datatype: found[datatype].copy()}
        changed[datatype].view(np.uint8)[-1, -1] ^= 1
        with pytest.raises(AssertionError):
            assert_same(changed, finite=False)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_refused_by_name(kind: str, doors: Doors):
    """No bundle has such a tensor: its networks compute with numbers."""
    texts = np.array([[b"a", b"bc"]], np.object_)
    with client_of(kind, doors) as client:
        status, message = client.refuses("infer", "types", [client.tensor("in_INT8", texts, "BYTES")])
    assert status in ("400", "StatusCode.INVALID_ARGUMENT")
    assert message == "input 'in_INT8' has datatype 'BYTES'; expected INT8"


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_refused_by_name(kind: str, doors: Doors):
    with client_of(kind, doors) as client:
        tensor = client.module.InferInput("in_FP16", [1, 2], "BF16")
        tensor.set_data_from_numpy(np.zeros((1, 2), ml_dtypes.bfloat16))
        status, message = client.refuses("infer", "types", [tensor])
    assert status in ("400", "StatusCode.INVALID_ARGUMENT")
    assert message == "input 'in_FP16' has datatype 'BF16'; expected FP16"


def test_nan_for_json_is_refused_with_the_way_out(doors: Doors):
    with client_of("http", doors) as client:
        inputs = [client.tensor("x", np.ones((ROWS, 3), np.float32), "FP32")]
        inputs += [client.tensor(f"in_{each}", values(each, finite=False), each) for each in DATATYPES]
        wanted = [client.wanted("out_FP64", binary=False)]
        status, message = client.refuses("infer", "types", inputs, outputs=wanted)
    assert status == "400"
    assert "binary_data" in message
