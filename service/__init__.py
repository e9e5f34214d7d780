"""The prediction service: one FastAPI app over ONNX Runtime that serves proven bundles, and nothing else.

    settings.py    what can be set          app.py        the app factory         server.py   uvicorn, signals, drain
    repository.py  which versions to serve  engine.py     one model, one session  batcher.py  the queue before it
    infer.py       /v2/.../infer, raw ASGI  protocol.py   its wire format         tensors.py  JSON and bytes to arrays
    predict.py     /predict for people      routes.py     every other endpoint    openapi.py  what /docs says of infer
    body.py        bodies under caps        answers.py    faults as responses     errors.py   the faults
    lifecycle.py   ready, draining          metrics.py    Prometheus              connection.py  slow clients

Nothing here imports torch, and nothing that it imports does.
"""
