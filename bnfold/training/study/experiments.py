"""What a study compares: experiments, each of several arms that differ from the recipe in the keys that they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bnfold.errors import DataError
from bnfold.training.networks import KINDS
from bnfold.training.recipe import Recipe

NORMS = ("batch", "none")
INITS = ("default", "he")
RATES = (0.25, 1.0, 4.0, 16.0, 64.0)
BATCHES = (1, 2, 4, 8, 32, 128)
BATCH_NORMS = ("batch", "group", "layer")
OTHER_NORMS = ("batch", "batch_renorm", "layer", "group", "instance", "none")
ORDERS = ("norm_first", "activation_first")


@dataclass(frozen=True)
class Arm:
    """One way to train. label: its line in a plot. place: where on the axis. overrides: as for `load_recipe`."""

    label: str
    place: float
    overrides: tuple[str, ...]

    @property
    def key(self) -> tuple[str, float]:
        """What tells it from the other arms of its experiment."""
        return self.label, self.place


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared. axis: what `place` means; empty where it is one place alone."""

    name: str
    title: str
    axis: str
    arms: tuple[Arm, ...]


def plan(recipe: Recipe, names: tuple[str, ...] = ()) -> tuple[Experiment, ...]:
    """The experiments of a study, where no names are given all that the network has the keys for.

    Raises DataError for a name not known, for one that changes a key that the network does not have, and for a network
    that is not this package's.
    """
    if recipe.network.is_factory:
        raise DataError(
            f"a study changes the norm, the order and the initial weights of a network, which '{recipe.network.kind}' "
            f"keeps to itself; expected one of {', '.join(KINDS)} as network.kind"
        )
    known = {experiment.name: experiment for experiment in _all(recipe)}
    for name in names:
        if name == "order" and name not in known:
            raise DataError(
                f"the experiment 'order' changes network.order, which network '{recipe.network.kind}' does not have; "
                "take another experiment or another kind of network"
            )
        if name not in known:
            raise DataError(f"the experiment '{name}' is not known; expected some of {', '.join(known)}")
    return tuple(known[name] for name in known if not names or name in names)


def _all(recipe: Recipe) -> Iterator[Experiment]:
    yield Experiment("speed", "With and without batch norm, two initialisations", "", tuple(_speed()))
    yield Experiment("rates", "Learning rates", "learning rate", tuple(_rates(recipe)))
    yield Experiment("batches", "Small batches", "batch size", tuple(_batches(recipe)))
    yield Experiment("norms", "Other norms", "", tuple(Arm(norm, 0, (f"network.norm={norm}",)) for norm in OTHER_NORMS))
    if "order" in recipe.network.args:
        arms = tuple(Arm(order.replace("_", " "), 0, (f"network.order={order}",)) for order in ORDERS)
        yield Experiment("order", "Norm before and after the activation", "", arms)
    yield Experiment("bias", "A bias before batch norm", "", tuple(_biases()))


def _speed() -> Iterator[Arm]:
    for norm in NORMS:
        for init in INITS:
            yield Arm(f"{norm}, {init} initialisation", 0, (f"network.norm={norm}", f"network.init={init}"))


def _rates(recipe: Recipe) -> Iterator[Arm]:
    for norm in NORMS:
        for init in INITS:
            for factor in RATES:
                rate = recipe.optimizer.learning_rate * factor
                changes = f"network.norm={norm}", f"network.init={init}", f"optimizer.learning_rate={rate!r}"
                yield Arm(f"{norm}, {init} initialisation", rate, changes)


def _biases() -> Iterator[Arm]:
    for label, value in (("without a bias", "false"), ("with a bias", "true")):
        yield Arm(label, 0, ("network.norm=batch", f"network.bias={value}"))


def _batches(recipe: Recipe) -> Iterator[Arm]:
    """The learning rate goes with the batch size (Goyal et al. 2017), as for small batches in Wu and He 2018."""
    for norm in BATCH_NORMS:
        for size in BATCHES:
            rate = recipe.optimizer.learning_rate * size / recipe.train.batch_size
            changes = f"network.norm={norm}", f"train.batch_size={size}", f"optimizer.learning_rate={rate!r}"
            yield Arm(norm, size, changes)
