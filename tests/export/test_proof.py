from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F
from torch_networks import CASES, Written, chain, conv, norm, randomised

from bnfold.errors import ExportError
from bnfold.export import export_model
from bnfold.export.onnx_model import translate
from bnfold.export.proof import ROUNDING, prove_export, run_module_float64
from bnfold.folding.torch_tensors import to_numpy


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = chain(
        conv(3, 4, 3, bias=False), norm(4), nn.ReLU, lambda: Written(4), lambda: nn.ConvTranspose2d(4, 4, 2, groups=2),
        norm(4, affine=False), nn.Flatten, lambda: nn.Linear(4 * 49, 3),
    )  # fmt: skip
    return randomised(layers()).eval()


X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
FEED = {"input": X.numpy()}


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    return export_model(network(), (X,))


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def test_proves_an_export_and_says_what_it_compared(exported: onnx.ModelProto) -> None:
    module = network()
    proof = prove_export(module, exported, FEED)
    state = set(module.state_dict())
    assert set(proof.equal) | set(proof.unused) == state
    assert {name.rpartition(".")[2] for name in proof.unused} == {"num_batches_tracked"}
    assert {"5.weight", "5.bias"} <= set(proof.added)
    assert not set(proof.added) & state
    assert 0 < proof.worst <= proof.tolerance < 1e-7
    assert proof.to_dict()["worst"] == proof.worst


@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "3.gamma", "7.bias"])
def test_notices_one_bit_of_one_parameter(exported: onnx.ModelProto, name: str) -> None:
    broken = copy_of(exported)
    tensor = next(tensor for tensor in broken.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.view(np.int32).reshape(-1)[1] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(ExportError, match=f"'{name}' differs from that of Sequential"):
        prove_export(network(), broken, FEED)


def test_notices_another_dtype_or_shape(exported: onnx.ModelProto) -> None:
    for change in (np.float16, np.float64):
        broken = copy_of(exported)
        tensor = next(tensor for tensor in broken.graph.initializer if tensor.name == "7.bias")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(change), "7.bias"))
        with pytest.raises(ExportError, match=r"'7\.bias' is float\d+\[3\] in the export, expected float32\[3\]"):
            prove_export(network(), broken, FEED)


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def widen_epsilon(model: onnx.ModelProto) -> None:
    for attribute in node_of(model, "BatchNormalization").attribute:
        if attribute.name == "epsilon":
            attribute.f *= 1.001


def swap_statistics(model: onnx.ModelProto) -> None:
    inputs = node_of(model, "BatchNormalization").input
    inputs[3], inputs[4] = inputs[4], inputs[3]


def drop_bias(model: onnx.ModelProto) -> None:
    del node_of(model, "Gemm").input[2]


def leak(model: onnx.ModelProto) -> None:
    node = node_of(model, "Relu")
    node.op_type = "LeakyRelu"
    node.attribute.append(onnx.helper.make_attribute("alpha", 1e-6))


def other_literal(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if not t.dims and t.data_type == onnx.TensorProto.FLOAT)
    tensor.CopyFrom(numpy_helper.from_array(np.float32(1.01e-3), tensor.name))


@pytest.mark.parametrize("change", [widen_epsilon, swap_statistics, drop_bias, leak, other_literal])
def test_notices_a_graph_that_computes_something_else(exported: onnx.ModelProto, change: object) -> None:
    broken = copy_of(exported)
    change(broken)  # type: ignore[operator]
    with pytest.raises(ExportError, match=r"output 'output' .* is .* from the module's in float64"):
        prove_export(network(), broken, FEED)


def test_notices_a_missing_output_or_input(exported: onnx.ModelProto) -> None:
    broken = copy_of(exported)
    broken.graph.output.append(onnx.helper.make_tensor_value_info("relu", onnx.TensorProto.FLOAT, None))
    with pytest.raises(ExportError, match="gives 1 tensors, its export 2"):
        prove_export(network(), broken, FEED)
    with pytest.raises(ExportError, match="needs an input 'input'"):
        prove_export(network(), exported, {"x": X.numpy()})


class Literals(nn.Module):
    """Numbers that float32 cannot hold, in every place where ONNX holds a number."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(self.bn(x) * 0.1, 0.07) / 0.3 + 0.7
        return F.hardswish(y) + F.gelu(y) + F.gelu(y, approximate="tanh") + F.hardsigmoid(y) + F.elu(y, 1.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_allows_for_the_rounding_of_literals_and_no_more(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = randomised(Literals()).to(dtype).eval()
    x = torch.randn(4, 4).to(dtype)
    model = ir.serde.serialize_model(translate(module, (x,)))
    proof = prove_export(module, model, {"x": to_numpy(x)})
    assert ROUNDING < proof.worst <= proof.literals
    # Half a unit at most is asked for, a whole one is allowed for each.
    assert proof.literals < 40 * torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps


def test_needs_no_allowance_where_there_are_no_literals() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.MaxPool2d(2)).eval()
    proof = prove_export(module, export_model(module, (X,)), FEED)
    assert (proof.literals, proof.tolerance) == (0.0, ROUNDING)
    assert proof.worst < 1e-14


def test_runs_a_module_in_float64_that_casts_by_itself() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x.float()).to(torch.float32) + torch.ones(3, dtype=torch.float32).half()
            return y + torch.zeros(3)

    torch.manual_seed(0)
    module = Casting()
    x = torch.randn(2, 3)
    found = run_module_float64(module, [x.numpy()])[0]
    with torch.no_grad():
        wanted = module.linear.double()(x.double()) + 1
    assert np.abs(found - wanted.numpy()).max() < 1e-15
    assert torch.get_default_dtype() == torch.float32


def test_says_that_a_module_cannot_be_run_in_float64() -> None:
    with pytest.raises(ExportError, match="Linear cannot be run in float64"):
        run_module_float64(nn.Linear(3, 3), [np.zeros((2, 4), np.float32)])


@pytest.mark.parametrize(
    "name",
    [
        "conv1d", "conv3d", "conv transpose with groups", "conv transpose 3d",
        "linear without bias, norm without gamma",
        "linear on sequences without bias, norm over the features", "frozen", "expanded", "written in place",
        "instance norm with statistics", "two inputs", "float64",
    ],
)  # fmt: skip
def test_proves_the_export_of_each_kind_of_network(name: str) -> None:
    case = CASES[name]
    module, inputs = case.module(), case.inputs(batch=3)
    model = ir.serde.serialize_model(translate(module, inputs))
    feed = {value.name: to_numpy(x) for value, x in zip(model.graph.input, inputs, strict=True)}
    proof = prove_export(module, model, feed)
    assert proof.worst < 1e-7
    assert {name.rpartition(".")[2] for name in proof.unused} <= {"num_batches_tracked"}


def test_proves_networks_with_operators_that_the_evaluator_has_in_float32_alone() -> None:
    class Transformer(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 6), nn.Hardswish())

    torch.manual_seed(0)
    module = randomised(Transformer()).eval()
    x = torch.randn(3, 5, 6)
    proof = prove_export(module, export_model(module, (x,)), {"input": x.numpy()})
    assert proof.worst < 1e-9
