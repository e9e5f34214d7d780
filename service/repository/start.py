"""All models before the first request."""

from __future__ import annotations

import logging

from bnfold.bundle import list_versions
from bnfold.errors import BnfoldError
from service.engine import resolve_device
from service.repository.catalogue import Repository
from service.repository.entries import Entry
from service.repository.policy import parse_policy
from service.repository.proving import Workshop
from service.repository.renewal import Renewal, report
from service.repository.scanning import list_models
from service.repository.state import Wishes
from service.settings import Settings
from service.telemetry.metrics import Metrics

_logger = logging.getLogger(__name__)


def load_repository(settings: Settings, metrics: Metrics, wishes: Wishes | None = None) -> Repository:
    """Scan, prove and open what the settings ask for, and `wishes`, which win.

    Raises BnfoldError when the folder cannot be read or the device does not start, which is no fault of a version; and,
    unless models can still come later (polling, or an admin key), when it holds no bundle or nothing in it is proven.
    """
    parse_policy(settings.version_policy)
    names = list_models(settings.repository, warn=True)
    shop = Workshop(settings, resolve_device(settings.device), metrics)
    _logger.info("device %s: models run on the %s", settings.device, shop.device.upper())
    entries, asides = {}, {}
    for name in names:
        wish = (wishes or {}).get(name)
        if wish is not None and wish.action == "unload":
            asides[name] = Entry(name, (), unloaded=True)
            _logger.info("model %s was unloaded by request and stays so", name)
        elif list_versions(settings.repository / name):
            policy = parse_policy((wish and wish.policy) or settings.version_policy)
            entries[name] = Renewal(shop, name, policy).run()
            report(entries[name])
    repository = Repository(entries, shop.device, asides)
    if settings.poll_interval == 0 and settings.admin_key_file is None and not asides:
        _check_some(repository, settings)
    return repository


def _check_some(repository: Repository, settings: Settings) -> None:
    if not repository.entries:
        raise BnfoldError(
            f"the model repository {settings.repository} holds no bundle; expected folders <name>/<version>/; "
            f"make one with `bnfold fold-and-export SOURCE -o {settings.repository}/<name>`"
        )
    if not repository.engines:
        refused = next(iter(repository.entries.values()))
        raise BnfoldError(
            f"nothing in the model repository {settings.repository} is proven, so nothing is served: {refused.failure}"
        )
