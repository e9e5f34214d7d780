"""Ray Serve: one replica that takes bytes and gives bytes (docs.ray.io, "Set Up FastAPI and HTTP" and "Dynamic Request
Batching"). The request object of Starlette is used without FastAPI, which is its leanest way; the access log is off.
"""

import logging
import signal

import numpy as np
import ray
from onnx_model import OnnxModel, max_batch, port
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

_ROWS = max_batch()
_SHAPE = (-1, 3, 32, 32)


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Network:
    """POST / with the bytes of one picture."""

    def __init__(self) -> None:
        self.model = OnnxModel()

    @serve.batch(max_batch_size=max(2, _ROWS), batch_wait_timeout_s=0.002)
    async def run_together(self, pictures):
        """Several requests at once."""
        return list(self.model(np.concatenate(pictures)))

    async def __call__(self, request: Request) -> Response:
        """One request."""
        x = np.frombuffer(await request.body(), np.float32).reshape(_SHAPE)
        found = await self.run_together(x) if _ROWS > 1 else self.model(x)
        return Response(found.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    serve.start(http_options={"host": "127.0.0.1", "port": port()})
    quiet = LoggingConfig(enable_access_log=False, log_level="ERROR")
    serve.run(Network.bind(), route_prefix="/", logging_config=quiet)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
