"""Where the server is between start and stop."""

from __future__ import annotations


class Lifecycle:
    """Ready, then draining (not ready, still accepting), then closed to new requests. It only goes forward."""

    def __init__(self) -> None:
        self.draining = False
        self.closed = False
        self.forced = False

    def drain(self) -> None:
        """Tell the probes to send nobody here any more; requests are still taken."""
        self.draining = True

    def close(self) -> None:
        """Take no further request; those that were taken are finished."""
        self.draining = True
        self.closed = True

    def force(self) -> None:
        """Wait for nothing any more."""
        self.forced = True
