"""What can go wrong with a request. None of these knows a status code: answers.py has the one table of them.

    Fault                  anything that ends a request without an answer from the model
    ├── BadRequest         malformed, misshapen, mistyped, unknown tensor, too many rows
    ├── LoadFailed         a version that was to be loaded is not proven
    ├── Unauthorized       no key, or none that is known here
    ├── Forbidden          a key that may not do this
    ├── TooLarge           a body, or what it decompresses to, above its cap
    ├── UnknownModel       no such model or version here
    ├── UnknownPath        nothing at this address
    ├── BadMethod          an address that takes other methods
    ├── BadEncoding        a Content-Encoding that is not read here
    ├── Unsupported        a part of the protocol that this server does not offer
    ├── SlowClient         a body that did not arrive in time
    ├── Busy               the queue is full, or the server is stopping: try again
    │   ├── NotReady       the model is here, but no version of it is proven
    │   ├── Expired        no answer within the deadline
    │   └── Unsaved        what was asked of the repository cannot be written down
    └── ModelFault         the runtime failed on an input that was well formed

Each message is one sentence for whoever sent the request. `reason` is a short word for the metrics.
"""

from __future__ import annotations


class Fault(Exception):
    """Anything that ends a request without an answer from the model."""

    reason = "internal"


class BadRequest(Fault):
    """Malformed, misshapen, mistyped, unknown tensor, too many rows."""

    reason = "bad_request"


class LoadFailed(Fault):
    """A version that was to be loaded is not proven."""

    reason = "load_failed"


class Unauthorized(Fault):
    """No key, or none that is known here."""

    reason = "unauthorized"


class Forbidden(Fault):
    """A key that may not do this."""

    reason = "forbidden"


class TooLarge(Fault):
    """A body, or what it decompresses to, above its cap."""

    reason = "too_large"


class UnknownModel(Fault):
    """No such model or version here."""

    reason = "unknown_model"


class UnknownPath(Fault):
    """Nothing at this address."""

    reason = "unknown_path"


class BadMethod(Fault):
    """An address that takes other methods. allowed: these, as in the Allow header."""

    reason = "bad_method"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class BadEncoding(Fault):
    """A Content-Encoding that is not read here."""

    reason = "bad_encoding"


class Unsupported(Fault):
    """A part of the protocol that this server does not offer."""

    reason = "unsupported"


class SlowClient(Fault):
    """A body that did not arrive in time."""

    reason = "slow_client"


class Busy(Fault):
    """The queue is full, no answer is to be expected in time, or the server is stopping: try again.

    retry_after: in so many seconds.
    """

    reason = "busy"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(Busy):
    """The model is here, but no version of it is proven."""

    reason = "not_ready"


class Expired(Busy):
    """No answer within the deadline."""

    reason = "expired"


class Unsaved(Busy):
    """What was asked of the repository cannot be written down, so nothing was changed."""

    reason = "unsaved"


class ModelFault(Fault):
    """The runtime failed on an input that was well formed."""

    reason = "model"


class Disconnected(Exception):
    """The client has gone: there is nobody to answer."""
