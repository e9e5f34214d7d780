"""The prediction service: one FastAPI app over ONNX Runtime that serves proven bundles, and nothing else.

The way of a request
    server.py       uvicorn, signals, drain; listener.py: its sockets
    connection.py   what a client may take, in bytes and seconds; bounds.py: all clients together
    express.py      inference without ASGI; plans.py: heads that come again
    front.py        raw ASGI, sees all that is not express; infer.py: inference through it
    body.py         bodies under caps; compression.py: and answers
    protocol.py     what a request may say; rest.py, outputs.py, classification.py: in bodies
    tensors.py      JSON and bytes to arrays
    rpc/            gRPC: the same behind another door
    predict.py      /predict for people; forms.py: files of a form
    routes.py       every other endpoint; extensions.py: statistics, and what is not offered
    errors.py       the faults; answers.py: faults as responses

What computes
    batcher.py      the workers and the queue; backlog.py: what waits for a model; batches.py: one batch
    admission.py    who may wait; deadlines.py: who has waited too long
    engine/         a version in its runtime
    hub.py          the parts of one server; app.py: the app factory

Which versions
    repository/     scan, prove, swap, retire
    policy.py       latest, all, specific; state.py: what was asked for, on disk
    admin.py        load and unload
    metadata.py     what a model says of itself; model_config.py: in Triton's words

Who may, and how much
    settings.py     what can be set; setting.py: one of them; configuration.py: where it comes from
    keys.py         keys from files; tls.py: certificates

Watching
    metrics.py      Prometheus; meter.py: what is counted; cells.py: where; exposition.py: its names
    stats.py        Triton's statistics
    watch.py        request ids, access log; logs.py: the log; traces.py: OpenTelemetry
    lifecycle.py    ready, draining, closed
    openapi.py      /docs; document.py, examples.py, assets.py: what stands in it

Several processes
    supervisor.py   starts and restarts them; worker.py: one of them; peers.py: how they talk; heartbeat.py: who hangs

Nothing here imports torch, and nothing that it imports does.
"""
