"""The prediction service: one FastAPI app over ONNX Runtime that serves proven bundles, and nothing else.

    app.py          the app factory; hub.py: the parts of one server
    processes/      the process: uvicorn, signals, drain, several workers
    http/           the HTTP door: inference, /predict, every other endpoint, /docs
    rpc/            gRPC: the same inference behind another door
    protocol/       the Open Inference Protocol v2, for both doors
    queueing/       who waits, and what is run together
    engine/         a version in its runtime
    repository/     which versions are served: scan, prove, swap, retire
    telemetry/      metrics, statistics, logs, traces
    settings.py     what can be set; setting.py: one of them; configuration.py: where it comes from
    keys.py         who may ask: keys from files; tls.py: certificates
    files.py        files that an operator names, opened without waiting
    errors.py       what can go wrong with a request

Nothing here imports torch, and nothing that it imports does.
"""
