"""From a recipe to a checkpoint."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnfold.errors import DataError
from bnfold.training.architecture import network_document
from bnfold.training.checkpoint import SCHEMA_VERSION, Checkpoint, load_checkpoint
from bnfold.training.data import Dataset, load_dataset
from bnfold.training.distributed import ALONE, Group, command_words, is_first_process, processes
from bnfold.training.divergence import Divergence
from bnfold.training.execution import choose_device, settings
from bnfold.training.followers import Followers, Told, Warn, check_followers, following
from bnfold.training.loop import Progress, fit
from bnfold.training.networks import build_network
from bnfold.training.networks.factory import make_trainable
from bnfold.training.place import Place, claim, claim_next, reopen
from bnfold.training.recipe import Recipe, load_recipe
from bnfold.training.run import Epoch, Run, begin
from bnfold.training.saving import save_checkpoint
from bnfold.training.smallest_batch import check_batch_size
from bnfold.training.snapshot import check_same, fingerprint, recipe_document, restore, write_snapshot
from bnfold.training.tracking import Tracking, conclude
from bnfold.training.whitening import whiten


def train(
    recipe: Path | str,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    output: Path | str | None = None,
    resume: Path | str | None = None,
    progress: Progress | None = None,
    tensorboard: Path | str | None = None,
    mlflow: str | None = None,
    mlflow_experiment: str | None = None,
    warn: Warn | None = None,
) -> Checkpoint:
    """Train the network of a recipe.

    device: auto, cpu or cuda. overrides: `key=value` with dots between tables. output: the checkpoint folder, which
    must not exist; the next free `runs/<name>/<n>` by default. resume: the checkpoint folder of a run that was stopped,
    in place of output; with the same recipe and overrides it goes on after the last epoch that was done. progress:
    called with one line an epoch. tensorboard: a folder for an event file with the history. mlflow: the URI of a
    tracking server for recipe, history and checkpoint, in an experiment of the recipe's name unless one is named. warn:
    called with a sentence when a norm is on its way to trouble, once for each norm and trouble, and when the tracking
    server fails midway, which otherwise is logged.

    The same recipe, seed and machine give the same weights bit for bit on the CPU, stopped and resumed or not. Raises
    DataError for a recipe that cannot be followed, a device that is not there, a loss that is not finite, a batch that
    does not fit the memory, or a folder that exists or cannot be written; KeyboardInterrupt says how to go on.

    Under torchrun the processes share every batch of the recipe, and the first of them writes.
    """
    wanted = load_recipe(recipe, overrides)
    target = choose_device(device)
    followers = check_followers(progress, warn, tensorboard, mlflow, mlflow_experiment)
    if output is not None and resume is not None:
        raise DataError("a new folder and one to resume were both given; expected one of them, --output or --resume")
    place = reopen(Path(resume)) if resume is not None else None
    if place is not None and place.folder.is_dir():
        return _finished(place, wanted, followers.tracking)
    data = load_dataset(wanted.data, wanted.folder)
    given = {"--device": None if device == "auto" else device, "--tensorboard": followers.board}
    given |= {"--mlflow": mlflow, "--mlflow-experiment": mlflow_experiment}
    command = [*command_words(), "train", str(recipe), *(f"--set={each}" for each in overrides)]
    command += [f"{name}={value}" for name, value in given.items() if value is not None]
    with processes(wanted, target) as group:
        place = place or _claimed(wanted.name, output, group, target)
        with place.held() if group.is_first else contextlib.nullcontext():
            try:
                with settings(wanted, target):
                    run = _begin(wanted, data, target, group)
                    return _trained(run, data, place, command, followers)
            finally:
                if group.is_first:
                    place.release_unless_resumable()


def _trained(run: Run, data: Dataset, place: Place, command: Sequence[str], followers: Followers) -> Checkpoint:
    """The checkpoint of a run, from its snapshot on where there is one. command: what it was started by."""
    identity = fingerprint(data)
    if place.snapshot.exists():
        restore(place.snapshot, run, identity)
    run.group.heard("restored", run.device)  # before the first of them replaces it

    def snapshot() -> None:
        if run.group.is_first:
            write_snapshot(place.snapshot, run, identity)

    heard_by = followers if run.group.is_first else Followers()
    with _going_on(place, command), following(heard_by, run, place) as told:
        fault = _fit(run, data, told.epoch, snapshot)
        return _save(run, data, place, fault, told)


def _claimed(name: str, output: Path | str | None, group: Group, device: torch.device) -> Place:
    """The place of a new run: the first process claims it, the others hear of it."""
    if not group.is_first:
        return Place(Path(group.heard("", device)))
    place = claim(Path(output)) if output is not None else claim_next(name)
    group.heard(str(place.folder), device)
    return place


def train_in_memory(
    recipe: Recipe, *, device: str = "auto", progress: Progress | None = None
) -> tuple[nn.Module, list[Epoch]]:
    """Train and write nothing: the network in eval mode, on the CPU, and the history.

    Raises DataError as `train` does.
    """
    target = choose_device(device)
    data = load_dataset(recipe.data, recipe.folder)
    with settings(recipe, target):
        run = _begin(recipe, data, target)
        fault = _fit(run, data, progress, lambda: None)
    if fault:
        raise DataError(fault)
    run.network.load_state_dict(run.kept)
    return run.network.to("cpu").eval(), run.history


def _fit(run: Run, data: Dataset, progress: Progress | None, snapshot: Callable[[], None]) -> str:
    """Train to the end, or as far as it goes: the sentence that says why no further, or nothing."""
    try:
        fit(run, data, progress or (lambda _: None), snapshot)
    except Divergence as problem:
        return f"recipe '{run.recipe.name}': {problem}; {_remedy(run.recipe)}"
    return ""


def _save(run: Run, data: Dataset, place: Place, fault: str, told: Told) -> Checkpoint:
    """The checkpoint of what is kept. fault: why the training ended early; then it is raised, after the writing."""
    if not run.kept:
        raise DataError(f"{fault}; no checkpoint was written")
    if run.group.is_first:
        network = _network(run.recipe, data)  # anew: those of several processes have other norms
        network.load_state_dict(run.kept)
        made = save_checkpoint(
            place.folder,
            network,
            _meta(run, data),
            run.history,
            data.held_out_part(),
            run.trends,
            counted=place.counted,
        )
        told.checkpoint(made.path)
        place.release()
        run.group.heard(str(made.path), run.device)
    else:
        made = load_checkpoint(Path(run.group.heard("", run.device)))
    if fault:
        raise DataError(f"{fault}; the checkpoint {made.path} has the weights of epoch {run.kept_epoch}")
    return made


@contextlib.contextmanager
def _going_on(place: Place, command: Sequence[str]) -> Iterator[None]:
    """What stops a run says how it can go on. command: what it was started by."""
    try:
        yield
    except (DataError, KeyboardInterrupt) as problem:
        sentence = str(problem) or "interrupted"
        if place.snapshot.exists():
            again = shlex.join([*command, "--resume", str(place.folder)])
            sentence += f"; the snapshot of the last epoch stays, and `{again}` goes on from it"
        raise type(problem)(sentence) from None


def _begin(recipe: Recipe, data: Dataset, device: torch.device, group: Group = ALONE) -> Run:
    network = _network(recipe, data)
    check_batch_size(network, recipe.train.batch_size)
    return begin(whiten(network, data, device, group), recipe, device, group)


def _network(recipe: Recipe, data: Dataset) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        kind, args = recipe.network.kind, recipe.network.args
        shape, classes = data.images.shape[1:], len(data.labels)
        if recipe.network.is_factory:  # found as a data set of the user's own is
            return make_trainable(kind, shape, classes, args, (Path.cwd(), recipe.folder.resolve()))
        return build_network(kind, shape, classes, args)


def _finished(place: Place, recipe: Recipe, tracking: Tracking | None) -> Checkpoint:
    """The run was stopped after its checkpoint was there, or not at all."""
    made = load_checkpoint(place.folder)
    check_same(place.folder, recipe_document(recipe), made.meta["recipe"])
    if is_first_process():
        conclude(tracking, place, made.path)
        place.release()
    return made


def _remedy(recipe: Recipe) -> str:
    others = [] if recipe.optimizer.clip_norm else ["set optimizer.clip_norm=1"]
    if recipe.train.precision != "float32":
        others.append("set train.precision=float32")
    return " or ".join(["lower optimizer.learning_rate", *others])


def _meta(run: Run, data: Dataset) -> dict[str, Any]:
    recipe, row = run.recipe, run.history[run.kept_epoch - 1]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "network": network_document(recipe.network.kind, recipe.network.args),
        "input": {"name": "input", "shape": list(data.images.shape[1:]), "dtype": "float32"},
        "labels": list(data.labels),
        "preprocessing": data.preprocessing.to_dict(),
        "data": data.name,
        "recipe": recipe_document(recipe),
        "seed": recipe.seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": importlib.metadata.version("scikit-learn"),
        },
        "metrics": {
            "held_out_accuracy": row.held_out_accuracy,
            "held_out_loss": row.held_out_loss,
            "train_accuracy": row.train_accuracy,
            "train_loss": row.train_loss,
            "epochs": len(run.history),
            "kept_epoch": row.epoch,
            "seconds": round(sum(each.seconds for each in run.history), 3),
            "device": run.device.type,
        },
    }
