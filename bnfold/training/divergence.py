"""A loss that is no longer finite: found before the step that would spoil the weights, and traced to a layer."""

from __future__ import annotations

import torch
from torch import nn


class Divergence(Exception):
    """A training that cannot go on. Its text is a clause without a full stop: what became what, when and where."""


class Watch:
    """Looks at the loss of every step, and lets the device work on meanwhile."""

    def __init__(self, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self._finite = torch.empty((), dtype=torch.bool, pin_memory=on_cuda)
        self._event = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]

    def note(self, loss: torch.Tensor) -> None:
        """Ask; the answer is there when the device has come to it."""
        self._finite.copy_(loss.detach().isfinite(), non_blocking=True)
        if self._event is not None:
            self._event.record()

    def is_finite(self) -> bool:
        """The answer to the last question."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._finite)


@torch.no_grad()
def first_layer_not_finite(network: nn.Module, x: torch.Tensor) -> str | None:
    """The first layer, in the order of computation, whose output for a batch has a NaN or an infinity.

    The network is run once, in the mode that it is in: in training the statistics of its norms move.
    """
    found: list[str] = []

    def look(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.is_floating_point() and not bool(output.isfinite().all()):
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: look(name, output))
        for name, module in network.named_modules()
        if name and next(module.children(), None) is None
    ]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
