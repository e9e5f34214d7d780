"""The tables of a recipe. Each key is declared here: what it means, its default and its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bnfold.factories import is_spec
from bnfold.training.fields import key


@dataclass(frozen=True)
class Data:
    """[data]"""

    name: str = key(
        "`digits`, `mnist`, `cifar10`, `folder` (of pictures), `npz`, `synthetic` (made up), or `module:factory` for "
        "one that your own code gives"
    )
    path: str = key("where the files lie, beginning at the recipe's folder", "")
    size: int = key("height and width that every image gets", 32, low=1, high=4096)
    mode: Literal["RGB", "L"] = key("colour, or one channel of grey", "RGB")
    count: int = key("made-up images", 10_000, low=4, high=2**31 - 1)
    classes: int = key("of the made-up images", 10, low=2, high=65_536)
    held_out: float = key(
        "the share of every class that training never sees, where the data set has no test part of its own",
        0.2, low=0, high=0.9, above=True,
    )  # fmt: skip
    seed: int = key(
        "of the choice of the held-out samples and of made-up images; not the recipe's `seed`, so that runs of "
        "several seeds are judged by the same samples",
        0, low=0, high=2**31 - 1,
    )  # fmt: skip
    max_bytes: int = key("the most memory that the images may need", 2**32, low=1, high=2**62)


@dataclass(frozen=True)
class Network:
    """[network]: a kind, and the keys that this kind takes, checked by it; or module:factory and its arguments."""

    kind: str
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_factory(self) -> bool:
        """Whether the user's own code gives it."""
        return is_spec(self.kind)


@dataclass(frozen=True)
class Optimizer:
    """[optimizer]"""

    kind: Literal["sgd", "adamw"] = key("`sgd` with Nesterov's momentum, or `adamw`")
    learning_rate: float = key("the largest", low=0, high=1e6, above=True)
    momentum: float = key("of `sgd`; the first beta of `adamw`", 0.9, low=0, high=0.9999)
    weight_decay: float = key("never on norms and biases", 0.0, low=0, high=1e6)
    clip_norm: float = key(
        "gradients of a larger Euclidean norm, over all parameters, are scaled down to it; 0: never",
        0.0,
        low=0,
        high=1e6,
    )


@dataclass(frozen=True)
class Train:
    """[train]"""

    epochs: int = key("passes over the data", low=1, high=1_000_000)
    batch_size: int = key(
        "samples a step; 1 only where no norm takes statistics of the batch; a last batch of 1 joins the one before",
        low=1, high=1_000_000,
    )  # fmt: skip
    schedule: Literal["one_cycle", "cosine", "constant"] = key(
        "of the learning rate: `one_cycle` up over the first fifth of the steps and down to zero, both linearly; "
        "`cosine` down by half a cosine; `constant`",
        "one_cycle",
    )
    label_smoothing: float = key("the share of the target that is spread over all classes", 0.0, low=0, high=0.99)
    threads: int = key(
        "of the CPU; part of the recipe, so that the same recipe gives the same bits on machines with more cores",
        1, low=1, high=1024,
    )  # fmt: skip
    ema: float = key(
        "the decay by step of an exponential moving average of the weights and of the norms' statistics, which then is "
        "what is evaluated and saved; 0: none",
        0.0, low=0, high=0.99999,
    )  # fmt: skip
    keep: Literal["last", "best"] = key(
        "the weights that are saved: of the `last` epoch, or of the one with the `best` held-out accuracy, of equal "
        "ones the one with the lower loss; the figure is then a choice made on the held-out samples",
        "last",
    )
    patience: int = key(
        "the training ends after so many epochs without a better held-out accuracy; 0: never", 0, low=0, high=1_000_000
    )
    snapshot: int = key(
        "epochs from one snapshot, from which a run can be resumed, to the next", 1, low=1, high=1_000_000
    )
    precision: Literal["float32", "bfloat16"] = key(
        "of the training steps: `bfloat16` is torch's autocast; weights stay float32, and held-out samples are "
        "always evaluated in float32",
        "float32",
    )
    tf32: bool = key("products of float32 in TF32, on CUDA; elsewhere without effect", False)
    channels_last: bool = key("images and kernels lie in memory with their channels last, which CUDA prefers", False)
    compile: bool = key("the network is compiled by torch.compile", False)
    cuda_graphs: bool = key("compiled, and replayed as CUDA graphs; elsewhere than on CUDA without effect", False)


@dataclass(frozen=True)
class Augmentation:
    """[augmentation]: of the images that are trained on."""

    shift: int = key("images are moved by up to so many pixels in each direction, zeros come in", 0, low=0, high=64)
    flip: bool = key("half of the images, by chance, are mirrored left to right", False)
    cutout: int = key("a square of so many pixels anywhere in the image is zero; 0: none", 0, low=0, high=1024)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. seed: of the initial weights, the order of the data and the augmentation.

    folder: where the recipe's file lies, to which relative paths in it are relative.
    """

    name: str
    seed: int
    data: Data
    network: Network
    optimizer: Optimizer
    train: Train
    augmentation: Augmentation
    folder: Path = Path()
