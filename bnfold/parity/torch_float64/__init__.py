"""An ONNX graph evaluated by torch in float64, with gradients.

The engine of the gradient search, and a faster float64 truth than the reference evaluator's. Everything here needs
torch: import it where it is used, never from a module that the server or a plain `verify` must load.
"""

from __future__ import annotations

from bnfold.parity.torch_float64.graph import TorchGraph

__all__ = ["TorchGraph"]
