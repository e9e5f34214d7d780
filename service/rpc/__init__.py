"""gRPC for the Open Inference Protocol v2, beside REST, on the same event loop and before the same queue.

    door.py        listening and stopping; the only module that may be imported without the extra `grpc`
    service.py     which method does what           messages.py    inference: protobuf to the checks and back
    inference.py   one inference                    statuses.py    from a fault to a status code
    stream.py      ModelStreamInfer                 watching.py    request ids, access log, traces

The messages are those of the official proto, from the package tritonclient.
"""
