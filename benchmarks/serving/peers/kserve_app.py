"""KServe's own Python server: a custom predictor, V2 in binary or JSON (kserve.github.io, "Custom predictor").

It has no batching of its own: in a cluster that is a sidecar's work. Latency logging and the access log are off.
"""

import kserve.protocol.rest.server as rest
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from onnx_model import OnnxModel, port


class Network(Model):
    """V2."""

    def __init__(self) -> None:
        super().__init__("network")
        self.network = OnnxModel()
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None) -> InferResponse:
        """One request."""
        del headers
        found = self.network(payload.inputs[0].as_numpy())
        output = InferOutput(name="output", shape=list(found.shape), datatype="FP32", data=found)
        return InferResponse(
            response_id=payload.id, model_name="network", infer_outputs=[output],
            use_binary_outputs=payload.use_binary_outputs, requested_outputs=payload.request_outputs,
        )  # fmt: skip


class LoopbackConfig(rest.uvicorn.Config):
    """KServe listens on every address, with uvicorn's access log; there is no setting for either."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "host": "127.0.0.1", "access_log": False})


if __name__ == "__main__":
    rest.uvicorn.Config = LoopbackConfig
    ModelServer(http_port=port(), workers=1, enable_grpc=False, enable_latency_logging=False).start([Network()])
