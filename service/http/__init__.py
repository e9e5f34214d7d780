"""The HTTP door: from the bytes of a connection to the queue, and back.

The way of a request
    connection.py   what a client may take, in bytes and seconds; bounds.py: all clients together
    express.py      inference without ASGI; plans.py: heads that come again
    front.py        raw ASGI, sees all that is not express; infer.py: inference through it
    body.py         bodies under caps; compression.py: and answers
    rest.py         the wire format of inference; flat.py: its numbers, where they are many
    predict.py      /predict for people; forms.py: files of a form
    routes.py       every other endpoint; admin.py: load and unload; extensions.py: statistics, and what is not offered
    answers.py      faults as responses
    openapi.py      /docs; document.py, examples.py, assets.py: what stands in it
"""
