"""The prediction service: one FastAPI app over ONNX Runtime that serves proven bundles, and nothing else.

    settings.py    what can be set          app.py        the app factory         server.py   uvicorn, signals, drain
    repository/    which versions to serve  engine/       what computes           batcher.py  the workers and the queue
    backlog.py     what waits for a model   batches.py    one batch in the runtime
    front.py       raw ASGI, sees all first infer.py      /v2/.../infer           routes.py   every other endpoint
    express.py     /v2/.../infer, without ASGI            plans.py    heads of requests that come again
    protocol.py    the wire of inference    rest.py       bodies of inference     tensors.py  JSON, bytes to arrays
    predict.py     /predict for people      rpc/          gRPC                    openapi.py  what /docs says
    body.py        bodies under caps        answers.py    faults as responses     errors.py   the faults
    lifecycle.py   ready, draining          metrics.py    Prometheus              meter.py    what is counted
    hub.py         the parts of one server  connection.py slow clients            forms.py    files of a form
    setting.py     one setting described    configuration.py  flags, variables, TOML
    keys.py        who may ask              tls.py        certificates            bounds.py   caps of all connections
    assets.py      files of /docs
    supervisor.py  several workers          worker.py     one of them             peers.py    how they talk

Nothing here imports torch, and nothing that it imports does.
"""
