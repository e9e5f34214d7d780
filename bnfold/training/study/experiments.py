"""What a study compares: experiments, each of several arms that differ from the recipe in the keys that they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bnfold.errors import DataError
from bnfold.training.fields import describe
from bnfold.training.networks import KINDS
from bnfold.training.recipe import Recipe

NORMS = ("batch", "none")
INITS = ("default", "he")
RATES = (0.25, 1.0, 4.0, 16.0, 64.0)
BATCHES = (1, 2, 4, 8, 32, 128)
BATCH_NORMS = ("batch", "group", "layer")
OTHER_NORMS = ("batch", "batch_renorm", "layer", "group", "instance", "none")
ORDERS = ("norm_first", "activation_first")
AS_IT_IS = "as the recipe has it"  # the one line of a network whose norm is its own affair
# The keys of [network] that an experiment cannot do without.
_CHANGES = {"speed": ("norm", "init"), "norms": ("norm",), "order": ("order",), "bias": ("norm", "bias")}


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
    """Arms that are compared. axis: what `place` means; empty where it is one place alone. left_out: a sentence on what
    the network does not take, or empty.
    """

    name: str
    title: str
    axis: str
    arms: tuple[Arm, ...]
    left_out: str = ""


def plan(recipe: Recipe, names: tuple[str, ...] = ()) -> tuple[Experiment, ...]:
    """The experiments of a study, where no names are given all that the network has the keys for.

    A network of the user's own has none of these keys, and its learning rates and batch sizes are left to study.
    Raises DataError for a name not known, and for one that changes a key that the network does not have.
    """
    known = {experiment.name: experiment for experiment in _all(recipe)}
    for name in names:
        if name in known:
            continue
        if name in _CHANGES:
            raise DataError(
                f"the experiment '{name}' changes {' and '.join(f'network.{key}' for key in _CHANGES[name])}, which "
                f"network '{recipe.network.kind}' does not have; take another experiment ({', '.join(known)}) or "
                "another kind of network"
            )
        raise DataError(f"the experiment '{name}' is not known; expected some of {', '.join(known)}")
    return tuple(known[name] for name in known if not names or name in names)


def _all(recipe: Recipe) -> Iterator[Experiment]:
    every = (
        Experiment("speed", "With and without batch norm, two initialisations", "", tuple(_speed())),
        Experiment("rates", "Learning rates", "learning rate", tuple(_rates(recipe))),
        Experiment("batches", "Small batches", "batch size", tuple(_batches(recipe))),
        _norms(recipe),
        Experiment("order", "Norm before and after the activation", "", tuple(_orders())),
        Experiment("bias", "A bias before batch norm", "", tuple(_biases())),
    )
    has = () if recipe.network.is_factory else tuple(recipe.network.args)
    yield from (each for each in every if all(key in has for key in _CHANGES.get(each.name, ())))


def _norms(recipe: Recipe) -> Experiment:
    """The norms that the network takes, and which it does not."""
    kind = recipe.network.kind
    taken = {each.name: each.choices for each in describe(KINDS[kind].args)}["norm"] if kind in KINDS else OTHER_NORMS
    arms = tuple(Arm(norm, 0, (f"network.norm={norm}",)) for norm in OTHER_NORMS if norm in taken)
    others = [f"'{norm}'" for norm in OTHER_NORMS if norm not in taken]
    left_out = f"Network '{kind}' does not take the norm {' or '.join(others)}." if others else ""
    return Experiment("norms", "Other norms", "", arms, left_out)


def _orders() -> Iterator[Arm]:
    for order in ORDERS:
        yield Arm(order.replace("_", " "), 0, (f"network.order={order}",))


def _speed() -> Iterator[Arm]:
    for norm in NORMS:
        for init in INITS:
            yield Arm(f"{norm}, {init} initialisation", 0, (f"network.norm={norm}", f"network.init={init}"))


def _rates(recipe: Recipe) -> Iterator[Arm]:
    networks = [Arm(AS_IT_IS, 0, ())] if recipe.network.is_factory else list(_speed())
    for network in networks:
        for factor in RATES:
            rate = recipe.optimizer.learning_rate * factor
            yield Arm(network.label, rate, (*network.overrides, f"optimizer.learning_rate={rate!r}"))


def _biases() -> Iterator[Arm]:
    for label, value in (("without a bias", "false"), ("with a bias", "true")):
        yield Arm(label, 0, ("network.norm=batch", f"network.bias={value}"))


def _batches(recipe: Recipe) -> Iterator[Arm]:
    """The learning rate goes with the batch size (Goyal et al. 2017), as for small batches in Wu and He 2018."""
    networks = {norm: (f"network.norm={norm}",) for norm in BATCH_NORMS}
    for label, overrides in ({AS_IT_IS: ()} if recipe.network.is_factory else networks).items():
        for size in BATCHES:
            rate = recipe.optimizer.learning_rate * size / recipe.train.batch_size
            yield Arm(label, size, (*overrides, f"train.batch_size={size}", f"optimizer.learning_rate={rate!r}"))
