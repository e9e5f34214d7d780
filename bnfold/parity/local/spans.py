"""Single sites of two ONNX models as small models of their own: the reference's linear and norms, the folded linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import helper, numpy_helper

from bnfold.errors import ParityError
from bnfold.parity.local.regions import read_by
from bnfold.parity.local.sites import Site

Array = np.ndarray[Any, np.dtype[Any]]


class Spans:
    """Cuts spans out of one model. Raises ParityError when a span is not there."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._writers = {name: node for node in model.graph.node for name in node.output if name}
        self._order = {id(node): at for at, node in enumerate(model.graph.node)}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def source(self, site: Site) -> str:
        """The value that the linear of a site reads, by its name in the reference."""
        return str(self._linear(site).input[0])

    def part(self, nodes: Sequence[onnx.NodeProto], sources: Mapping[str, Array], target: str) -> bytes:
        """Some nodes as a model of its own. sources: arrays of the types and ranks of what they read, by name."""
        read = {name for node in nodes for name in read_by(node)}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
            for name, array in sources.items()
        ]
        tensors = [tensor for name, tensor in self._tensors.items() if name in read]
        return self._bytes(nodes, inputs, target, tensors)

    def tensors(self, nodes: Sequence[onnx.NodeProto]) -> dict[str, Array]:
        """The stored constants that some nodes read, by name."""
        read = {name for node in nodes for name in node.input}
        return {name: numpy_helper.to_array(tensor) for name, tensor in self._tensors.items() if name in read}

    def cut(self, source: str, target: str, dtype: int, rank: int) -> bytes:
        """The span from one value to another as a model of its own, sizes left free. dtype: ONNX's number of it."""
        nodes: dict[int, onnx.NodeProto] = {}
        tensors: dict[str, onnx.TensorProto] = {}
        waiting = [target]
        while waiting:
            name = waiting.pop()
            if name == source or not name or name in tensors:
                continue
            if name in self._tensors:
                tensors[name] = self._tensors[name]
                continue
            node = self._writers.get(name)
            if node is None:
                raise ParityError(f"the span from '{source}' to '{target}' also reads '{name}', no constant")
            if id(node) not in nodes:
                nodes[id(node)] = node
                waiting.extend(node.input)
        ordered = sorted(nodes.values(), key=lambda node: self._order[id(node)])
        return self._model(ordered, source, target, list(tensors.values()), dtype, rank)

    def reader(self, tensor: str) -> onnx.NodeProto:
        """The one node that reads a tensor."""
        found = self._readers(tensor)
        if len(found) != 1:
            raise ParityError(f"tensor '{tensor}' has {len(found)} readers in the folded model; expected one")
        return found[0]

    def folded(self, site: Site, dtype: int, rank: int) -> tuple[str, bytes]:
        """The folded linear of a site, with the addition of its bias where that is a node of its own.

        Gives the name of its input, which may be another one than in the reference, and the model.
        """
        last = self.reader(site.bias or site.weight)
        readers = self._readers(site.weight)
        linear = last if site.weight in last.input else self._writers.get(last.input[0])
        if linear is None or not any(linear is node for node in readers):
            raise ParityError(
                f"tensor '{site.weight}' has {len(readers)} readers in the folded model, not that of the bias"
            )
        return linear.input[0], self.cut(linear.input[0], last.output[0], dtype, rank)

    def _linear(self, site: Site) -> onnx.NodeProto:
        node: onnx.NodeProto | None = self._writers.get(site.linear.id)
        if node is None:
            raise ParityError(f"{site.linear.label} is not in the reference")
        return node

    def _readers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if tensor in node.input]

    def absolute(self, site: Site, weight: Array, rank: int) -> onnx.ModelProto:
        """The linear of a site alone, in float64, with this weight, no bias, alpha = 1."""
        source = self._linear(site)
        node = helper.make_node(source.op_type, [source.input[0], "weight"], ["output"])
        node.attribute.extend(a for a in source.attribute if a.name not in ("alpha", "beta"))
        tensor = numpy_helper.from_array(weight.astype(np.float64), "weight")
        data = self._model([node], source.input[0], "output", [tensor], onnx.TensorProto.DOUBLE, rank)
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
        return model

    def _model(
        self, nodes: Sequence[onnx.NodeProto], source: str, target: str, tensors: Sequence[onnx.TensorProto],
        dtype: int, rank: int,
    ) -> bytes:  # fmt: skip
        return self._bytes(nodes, [helper.make_tensor_value_info(source, dtype, [None] * rank)], target, tensors)

    def _bytes(
        self, nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], target: str,
        tensors: Sequence[onnx.TensorProto],
    ) -> bytes:  # fmt: skip
        graph = helper.make_graph(nodes, "span", inputs, [onnx.ValueInfoProto(name=target)], tensors)
        version = max(4, self.model.ir_version)
        return _bytes(helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=version))


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model with inner values as further outputs (graph inputs and present outputs are left out)."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    present = {value.name for value in (*clone.graph.input, *clone.graph.output)}
    clone.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
    return _bytes(clone)


def _bytes(model: onnx.ModelProto) -> bytes:
    """Raises ParityError for a model that does not fit a protobuf message."""
    try:
        data: bytes = model.SerializeToString()
    except (EncodeError, ValueError):
        raise ParityError("the model is larger than the 2 GiB of a protobuf message and cannot be cut") from None
    return data
