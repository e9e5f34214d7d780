"""Which of several processes says why a training ended: what all of them would say is said once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from datetime import timedelta

import torch.distributed as dist

from bnfold.errors import DataError
from bnfold.training.distributed import LeftAlone

_SECONDS = 1.0  # for the process that failed first to come first
_TIMEOUT = timedelta(seconds=5)


def is_said_elsewhere(problem: DataError | KeyboardInterrupt) -> bool:
    """Whether another process of this training, as torchrun started it, says what this one would. Asked once.

    A failure that only this process has is said by it. That others are gone, or that torchrun ends all because one has
    failed, is said only where nobody said more. Where there is no torchrun to meet at, every process speaks for itself.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    if isinstance(problem, LeftAlone):
        with contextlib.suppress(KeyboardInterrupt):  # torchrun's, who has seen another one end
            time.sleep(_SECONDS)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    digest = hashlib.sha256(str(problem).encode()).hexdigest()
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=_TIMEOUT, wait_for_workers=False
        )
        same = store.add(f"bnfold/{attempt}/said/{digest}", 1)
        any_at_all = store.add(f"bnfold/{attempt}/said", 1)
    except (KeyError, ValueError, RuntimeError):  # torchrun is gone: rather twice than never
        return False
    return (any_at_all if isinstance(problem, LeftAlone | KeyboardInterrupt) else same) > 1
