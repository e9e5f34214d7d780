"""What the server and its models say of themselves, for both doors.

Source: the Open Inference Protocol v2, "Server Metadata" and "Model Metadata". The versions of a model are those in
service; of a version it is that one, as in Triton.
"""

from __future__ import annotations

from typing import Any

import bnfold
from service.http.extensions import list_extensions
from service.hub import Hub
from service.protocol.model_config import PLATFORM
from service.protocol.tensors import Port


def describe_server(hub: Hub) -> dict[str, Any]:
    """Name, version, extensions."""
    return {"name": "bnfold", "version": bnfold.__version__, "extensions": list_extensions(hub)}


def describe_model(hub: Hub, model: str, version: str | None = None) -> dict[str, Any]:
    """Versions, platform, inputs and outputs. Raises UnknownModel, NotReady."""
    engine = hub.repository.find(model, version)
    served = hub.repository.find_entry(model).engines
    return {
        "name": engine.name,
        "versions": sorted(served, key=int) if version is None else [engine.version],
        "platform": PLATFORM,
        "inputs": [_describe_port(port) for port in engine.signature.inputs],
        "outputs": [_describe_port(port) for port in engine.signature.outputs],
    }


def _describe_port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "datatype": port.datatype, "shape": port.shape}
