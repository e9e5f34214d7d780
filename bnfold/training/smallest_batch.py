"""How few samples a network can be trained on at a time."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.errors import DataError
from bnfold.training.networks.batch_renorm import BatchRenorm
from bnfold.training.networks.handwritten import HandwrittenBatchNorm

_OF_THE_BATCH = (_BatchNorm, BatchRenorm, HandwrittenBatchNorm)


def smallest_batch(network: nn.Module) -> int:
    """2 where a norm of the network takes statistics of the batch while it trains, else 1."""
    return 2 if _norm_of_the_batch(network.train()) else 1


def check_batch_size(network: nn.Module, size: int) -> None:
    """Raise DataError for a batch of one sample where a norm takes its statistics from the batch."""
    name = _norm_of_the_batch(network.train()) if size == 1 else ""
    if name:
        raise DataError(
            f"train.batch_size is 1, and the norm '{name}' takes the mean and the variance of the batch while it "
            "trains: the mean of one row of features is the row and its variance 0, so that every output would be "
            "beta, and those of one picture are not the ones that eval uses; set train.batch_size to 2 or more, or "
            "take a norm that does without the batch, such as group or layer"
        )


def _norm_of_the_batch(network: nn.Module) -> str:
    """The name of the first; a norm that its owner keeps in eval is none. The network is in training mode."""
    return next((n for n, part in network.named_modules() if isinstance(part, _OF_THE_BATCH) and part.training), "")
