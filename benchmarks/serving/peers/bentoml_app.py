"""BentoML: a service with a numpy input, JSON in and out (docs.bentoml.com, "Create online API Services", "Adaptive
batching"). One worker, no access log.
"""

import bentoml
import numpy as np
from onnx_model import OnnxModel, max_batch

_ROWS = max_batch()
_BATCHING = {"batchable": True, "max_batch_size": _ROWS, "max_latency_ms": 1000} if _ROWS > 1 else {}


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Network:
    """POST /predict with {"x": nested list}; the answer is a nested list."""

    def __init__(self) -> None:
        self.model = OnnxModel()

    @bentoml.api(**_BATCHING)
    def predict(self, x: np.ndarray) -> np.ndarray:
        """(N, 3, 32, 32) to (N, 10)."""
        return self.model(np.asarray(x, dtype=np.float32))
