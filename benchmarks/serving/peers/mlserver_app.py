"""MLServer: a custom runtime with the numpy codec (mlserver.readthedocs.io, "Custom runtime", "Adaptive batching").

Its settings are written by serving.servers: no parallel workers (the network runs in the server's own process, which
is the cheaper way), no access log.
"""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_model import OnnxModel


class Network(MLModel):
    """V2 JSON in and out."""

    async def load(self) -> bool:
        """Once."""
        self._network = OnnxModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A request, or several that adaptive batching has joined."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output(name="output", payload=self._network(x))
        return InferenceResponse(model_name=self.name, outputs=[output])
