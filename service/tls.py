"""TLS: one certificate and its key from two PEM files, read again when they change.

The context that sockets were opened with stays, and gives every new connection the newest one (the callback for the
server's name, RFC 6066, 3, is called for each greeting): a renewed certificate needs no restart, and half a renewal
changes nothing.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError
from service.files import descriptor_of
from service.settings import Settings

_LOOK_EVERY = 1.0  # seconds
_SOON = timedelta(days=14)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)
_MOST_BYTES = 2**20
_SEQUENCE, _VERSION, _UTC_TIME, _GENERAL_TIME = 0x30, 0xA0, 0x17, 0x18  # tags of X.690, and of RFC 5280, 4.1

_logger = logging.getLogger(__name__)


class Certificate:
    """The certificate of one server. context: what sockets are opened with."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._seen: object = None
        self._look_at = 0.0
        self._warn_at = datetime.min.replace(tzinfo=UTC)
        self.ends = self._load()
        _check_mode(key)
        self.context = _make_context()
        self.context.sni_callback = self._give_newest

    @staticmethod
    def open(settings: Settings) -> Certificate | None:
        """The certificate that the settings name, None without. Raises BnfoldError for files that cannot be used."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return Certificate(settings.tls_cert, settings.tls_key)

    def look(self) -> None:
        """Take renewed files. Called often; what cannot be used leaves the certificate as it is, and is told."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_EVERY
        if self._stamp() != self._seen:
            try:
                self.ends = self._load()
            except BnfoldError as problem:
                _logger.error("the certificate stays as it is: %s", problem)
            else:
                _logger.info("the certificate %s was read again; it is good until %s", self._cert, self.ends)
        self._warn_of_end()

    def _load(self) -> datetime:
        self._seen = self._stamp()
        self._newest, ends = _load(self._cert, self._key)
        self._warn_at = datetime.min.replace(tzinfo=UTC)
        self.ends = ends
        self._warn_of_end()
        return ends

    def _warn_of_end(self) -> None:
        """Once a day from two weeks before the end on."""
        now = datetime.now(UTC)
        if now < self._warn_at or now < self.ends - _SOON:
            return
        self._warn_at = now + timedelta(days=1)
        _logger.warning("the certificate %s %s %s", self._cert, "ends on" if now < self.ends else "ended on", self.ends)

    def _give_newest(self, greeted: Any, _: str | None, __: ssl.SSLContext) -> None:
        greeted.context = self._newest

    def _stamp(self) -> object:
        try:
            found = [os.stat(path) for path in (self._cert, self._key)]
        except OSError as problem:
            return problem.errno
        return [(item.st_dev, item.st_ino, item.st_size, item.st_mtime_ns) for item in found]


def check_certificate(settings: Settings) -> None:
    """Raise BnfoldError for files that cannot be used, before the models are proven, which may take minutes."""
    if settings.tls_cert is not None and settings.tls_key is not None:
        _load(settings.tls_cert, settings.tls_key)


def _make_context() -> ssl.SSLContext:
    """TLS 1.2 and later, HTTP/1.1 (ALPN), no renegotiation, which lets a client ask for costly work."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | getattr(ssl, "OP_NO_RENEGOTIATION", 0)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(cert: Path, key: Path) -> tuple[ssl.SSLContext, datetime]:
    """A context with the certificate, and the end of its validity. Raises BnfoldError."""
    text = _read(cert, "--tls-cert")
    if "PRIVATE KEY" not in _read(key, "--tls-key"):
        raise BnfoldError(f"the --tls-key {key} holds no private key; expected a PEM file with one")
    found = _PEM.search(text)
    if found is None:
        raise BnfoldError(f"the --tls-cert {cert} holds no certificate; expected a PEM file, its chain after it")
    context = _make_context()
    try:
        # A password is never asked for: that would be a question to the terminal.
        context.load_cert_chain(cert, key, password="")
        ends = read_end(ssl.PEM_cert_to_DER_cert(found[0]))
    except (ssl.SSLError, ValueError, IndexError) as problem:
        reason = getattr(problem, "reason", None) or "damaged"
        if reason == "KEY_VALUES_MISMATCH":
            raise BnfoldError(
                f"the --tls-key {key} is not the key of the --tls-cert {cert}; give the two that belong together"
            ) from None
        raise BnfoldError(
            f"the --tls-cert {cert} and the --tls-key {key} cannot be used ({str(reason).replace('_', ' ').lower()}); "
            "expected PEM files, the key without a password"
        ) from None
    return context, ends


def _read(path: Path, flag: str) -> str:
    try:
        with descriptor_of(path) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BnfoldError(f"the {flag} {path} is no regular file; give a PEM file")
            with open(descriptor, "rb", closefd=False) as opened:
                return opened.read(_MOST_BYTES).decode("latin-1")
    except OSError as problem:
        raise BnfoldError(f"the {flag} {path} cannot be read ({problem.strerror}); give a PEM file") from None


def _check_mode(key: Path) -> None:
    if os.name == "posix" and key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        _logger.warning("the --tls-key %s is open to others than its owner; say chmod 600", key)


def read_end(der: bytes) -> datetime:
    """The end of the validity of a certificate (notAfter; RFC 5280, 4.1.2.5). Raises ValueError, IndexError."""
    at = _enter(der, _enter(der, 0))  # Certificate, TBSCertificate
    if der[at] == _VERSION:
        at = _pass(der, at)
    for _ in range(3):  # serial number, signature algorithm, issuer
        at = _pass(der, at)
    at = _pass(der, _enter(der, at))  # Validity, notBefore
    start, end = _span(der, at)
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERAL_TIME: "%Y%m%d%H%M%SZ"}.get(der[at])
    if form is None:
        raise ValueError("no time where the end of the validity belongs")
    found = datetime.strptime(der[start:end].decode("ascii"), form).replace(tzinfo=UTC)
    # Two digits from 50 on are of the last century.
    return found.replace(year=found.year - 100) if der[at] == _UTC_TIME and found.year >= 2050 else found


def _span(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at a place begins and ends (X.690, 8.1.3)."""
    length, start = der[at + 1], at + 2
    if length >= 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    if start + length > len(der):
        raise ValueError("an element reaches beyond the end")
    return start, start + length


def _enter(der: bytes, at: int) -> int:
    if der[at] != _SEQUENCE:
        raise ValueError("no sequence where one belongs")
    return _span(der, at)[0]


def _pass(der: bytes, at: int) -> int:
    return _span(der, at)[1]
