"""LitServe: an API with a network, JSON in and out (lightning.ai/docs/litserve, "Get started" and "Batching").

One worker process, its queue over ZeroMQ ("fast_queue"), which its documentation calls the faster one.
"""

import litserve
import numpy as np
from onnx_model import OnnxModel, max_batch, port


class Network(litserve.LitAPI):
    """One picture a request."""

    def setup(self, device):
        """Once, in the worker."""
        del device
        self.model = OnnxModel()

    def decode_request(self, request):
        """{"input": nested list}"""
        return np.asarray(request["input"], dtype=np.float32)

    def batch(self, inputs):
        """Pictures to one array."""
        return np.stack(inputs)

    def predict(self, x):
        """One picture, or a batch where batching is on."""
        return self.model(x) if x.ndim == 4 else self.model(x[None])[0]

    def unbatch(self, output):
        """One answer a request."""
        return list(output)

    def encode_response(self, output):
        """{"output": list}"""
        return {"output": output.tolist()}


if __name__ == "__main__":
    rows = max_batch()
    api = Network(max_batch_size=rows, batch_timeout=0.002 if rows > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1", port=port(), num_api_servers=1, generate_client_file=False, log_level="warning",
        access_log=False,
    )  # fmt: skip
