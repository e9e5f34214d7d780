"""TF32 on a CPU: each factor of a product is rounded to 11 bits of significand, sums stay in float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Veltkamp's splitting (Dekker 1971): with c = (2^k + 1) x, c - (c - x) is x rounded to 24 - k bits.
_SPLIT = "tf32.split"


def in_tf32(model: onnx.ModelProto, bits: int = 11) -> onnx.ModelProto:
    """The model with both factors of every Conv, Gemm and MatMul rounded to so many bits, 11 in TF32."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    graph.initializer.append(numpy_helper.from_array(np.array(2.0 ** (24 - bits) + 1, np.float32), _SPLIT))
    nodes = []
    for node in model.graph.node:
        inputs = list(node.input)
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            for at in (0, 1):
                stem = f"tf32.{node.name or node.output[0]}.{at}"
                nodes += [
                    helper.make_node("Mul", [inputs[at], _SPLIT], [f"{stem}.c"]),
                    helper.make_node("Sub", [f"{stem}.c", inputs[at]], [f"{stem}.rest"]),
                    helper.make_node("Sub", [f"{stem}.c", f"{stem}.rest"], [f"{stem}.rounded"]),
                ]
                inputs[at] = f"{stem}.rounded"
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[:] = inputs
        nodes.append(changed)
    del graph.node[:]
    graph.node.extend(nodes)
    return found
