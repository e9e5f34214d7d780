"""The prediction service: one FastAPI app over ONNX Runtime that serves proven bundles, and nothing else.

    settings.py    what can be set          app.py        the app factory         server.py   uvicorn, signals, drain
    repository.py  which versions to serve  engine.py     one model, one session  batcher.py  the queue before it
    front.py       raw ASGI, sees all first infer.py      /v2/.../infer           routes.py   every other endpoint
    protocol.py    the wire of inference    tensors.py    JSON, bytes to arrays   predict.py  /predict for people
    body.py        bodies under caps        answers.py    faults as responses     errors.py   the faults
    lifecycle.py   ready, draining          metrics.py    Prometheus              openapi.py  what /docs says
    hub.py         the parts of one server  connection.py slow clients            forms.py    files of a form

Nothing here imports torch, and nothing that it imports does.
"""
