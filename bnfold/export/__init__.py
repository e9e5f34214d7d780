"""From torch to ONNX: the clean, unfolded graph, and the proof that it equals its source.

onnx_model.py   traces, translates, cleans, checks, writes
cleaning.py     passes on ONNX IR: no debris, float parameters never folded
naming.py       names that are the same each time: nodes, inputs, outputs, the batch axis
proof.py        tier T3b: parameters bit for bit, outputs in float64
"""

from bnfold.export.onnx_model import export_model, export_onnx

__all__ = ["export_model", "export_onnx"]
