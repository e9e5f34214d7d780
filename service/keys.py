"""Who may ask: keys from two files, one for inference and one for loading and unloading.

A key comes as `Authorization: Bearer KEY` (RFC 6750, 2.1) or as `X-API-Key: KEY`. What was sent is compared with every
key in constant time, as digests of one length. The files are read again within a second of a change, so that keys are
rotated without a restart: add the new one, move the clients, take the old one out. A key is never shown, neither in an
error nor in the log: a line is named by its number.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from bnfold.errors import BnfoldError
from service.errors import Forbidden, Unauthorized, Unsupported
from service.files import descriptor_of
from service.settings import Settings

Role = Literal["infer", "admin"]
RawHeaders = Iterable[tuple[bytes, bytes]]

FREE = frozenset({"/v2/health/live", "/v2/health/ready"})

_BEARER = b"bearer "
_SHORTEST, _LONGEST = 16, 512  # 16 characters of base64 are 96 bits
_MOST_KEYS = 64
_MOST_BYTES = 2**16
_LOOK_EVERY = 1.0  # seconds

_HOW = "send it as Authorization: Bearer KEY, or as X-API-Key"
_ADMIN_OFF = "loading and unloading is off here; start the server with --admin-key-file to turn it on"

_logger = logging.getLogger(__name__)


class Keys:
    """The keys of one server. Used on the event loop alone."""

    def __init__(self, infer: KeyFile | None, admin: KeyFile | None) -> None:
        self._infer = infer
        self._admin = admin
        self._look_at = 0.0
        self._digests: dict[Role, tuple[bytes, ...]] = {"infer": (), "admin": ()}
        self._join()

    @staticmethod
    def open(settings: Settings) -> Keys:
        """The keys that the settings name. Raises BnfoldError for a file that cannot be used."""
        infer = KeyFile(settings.api_key_file, "--api-key-file") if settings.api_key_file else None
        admin = KeyFile(settings.admin_key_file, "--admin-key-file") if settings.admin_key_file else None
        return Keys(infer, admin)

    @property
    def are_asked_for(self) -> bool:
        """Whether inference needs a key. With an admin key file alone it does not."""
        return self._infer is not None

    def check(self, headers: RawHeaders, role: Role) -> None:
        """Raise Unauthorized without a key that is known, Forbidden for one that may not do this.

        An admin key may infer. Where there is no file of keys for inference everybody may infer; where there is none
        of keys for admins nobody is one, and Unsupported says so.
        """
        if role == "admin" and self._admin is None:
            raise Unsupported(_ADMIN_OFF)
        if role == "infer" and self._infer is None:
            return
        if time.monotonic() >= self._look_at:
            self._look()
        digest = _digest(_find_key(headers))
        known = {name: _is_among(digest, digests) for name, digests in self._digests.items()}
        if known["admin"] or (known["infer"] and role == "infer"):
            return
        if known["infer"]:
            raise Forbidden("this key may infer, but not load and unload; send an admin key")
        raise Unauthorized(f"the key is not one that this server knows; {_HOW}")

    def admit(self, path: str, headers: RawHeaders) -> None:
        """Let a request in, or raise as `check` does. The probes of an orchestrator need no key."""
        if self._infer is not None and path not in FREE:
            self.check(headers, "infer")

    def knows(self, headers: RawHeaders) -> bool:
        """Whether a request may see what is behind the keys."""
        try:
            self.check(headers, "infer")
        except Unauthorized:
            return False
        return True

    def _look(self) -> None:
        """Take what the files say now. A file that cannot be used any more leaves the keys as they are, and is told."""
        self._look_at = time.monotonic() + _LOOK_EVERY
        files = [file for file in (self._infer, self._admin) if file is not None]
        if not [file for file in files if file.has_changed()]:
            return
        try:
            for file in files:
                file.read()
            self._join()
        except BnfoldError as problem:
            _logger.error("the keys stay as they are: %s", problem)
            return
        _logger.info("the keys were read again")

    def _join(self) -> None:
        infer = self._infer.digests if self._infer is not None else ()
        admin = self._admin.digests if self._admin is not None else ()
        if set(infer) & set(admin):
            raise BnfoldError(
                "a key stands both in the --api-key-file and in the --admin-key-file; "
                "expected each in one of them; make another key for admins"
            )
        self._digests = {"infer": infer, "admin": admin}


class KeyFile:
    """A file of keys, one a line; empty lines and lines that begin with # are passed over. digests: of its keys."""

    def __init__(self, path: Path, flag: str) -> None:
        self._path = path
        self._flag = flag
        self._seen: tuple[int, ...] | None = None
        self.digests: tuple[bytes, ...] = ()
        self.read()

    def has_changed(self) -> bool:
        """Whether it is another file, or has another content, than when it was read."""
        try:
            return _stamp(os.stat(self._path)) != self._seen
        except OSError:
            return self._seen is not None

    def read(self) -> None:
        """Take the keys of the file. Raises BnfoldError; then they stay as they were."""
        self._seen = None
        try:
            with descriptor_of(self._path) as descriptor:
                found = os.fstat(descriptor)
                self._seen = _stamp(found)
                self._check_mode(found.st_mode)
                with open(descriptor, "rb", closefd=False) as opened:
                    content = opened.read(_MOST_BYTES + 1)
        except OSError as problem:
            raise self._bad(f"cannot be read ({problem.strerror})", "a file that the server may read") from None
        self.digests = tuple(_digest(key) for key in self._parse(content))

    def _check_mode(self, mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise self._bad("is no regular file", "a file with one key a line")
        if os.name != "posix":
            return
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise self._bad("can be written by others than its owner", "mode 600; say chmod 600")
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            _logger.warning("the %s %s can be read by others than its owner; say chmod 600", self._flag, self._path)

    def _parse(self, content: bytes) -> list[bytes]:
        if len(content) > _MOST_BYTES:
            raise self._bad(f"is larger than {_MOST_BYTES} bytes", f"at most {_MOST_KEYS} keys")
        keys: list[bytes] = []
        for number, line in enumerate(content.splitlines(), start=1):
            key = line.strip()
            if not key or key.startswith(b"#"):
                continue
            if not all(0x21 <= byte <= 0x7E for byte in key):
                raise self._bad(f"has a space or a special character in line {number}", "one key of ASCII characters")
            if not _SHORTEST <= len(key) <= _LONGEST:
                raise self._bad(
                    f"has a key of {len(key)} characters in line {number}",
                    f"{_SHORTEST} to {_LONGEST}; `openssl rand -base64 32` makes one",
                )
            keys.append(key)
        if not 1 <= len(keys) <= _MOST_KEYS:
            raise self._bad(f"holds {len(keys)} keys", f"1 to {_MOST_KEYS}, one a line")
        return keys

    def _bad(self, found: str, expected: str) -> BnfoldError:
        return BnfoldError(f"the {self._flag} {self._path} {found}; expected {expected}")


def check_exposure(settings: Settings) -> None:
    """Raise BnfoldError for a server that other machines would reach without a key, unless it shall be so."""
    if settings.is_loopback or settings.api_key_file is not None or settings.insecure:
        return
    raise BnfoldError(
        f"on the host {settings.host} other machines reach the server, and it would ask nobody for a key; "
        "give --api-key-file FILE, or --insecure to let everybody in"
    )


def _find_key(headers: RawHeaders) -> bytes:
    """The key of a request. Raises Unauthorized when there is none, or there are several that differ."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == _BEARER:
            key = value[7:].strip()
        elif name == b"x-api-key":
            key = value.strip()
        else:
            continue
        if found is not None and not hmac.compare_digest(key, found):
            raise Unauthorized("the request has several keys that differ; send one")
        found = key
    if found is None:
        raise Unauthorized(f"this server asks for a key; {_HOW}")
    return found


def _is_among(digest: bytes, digests: Iterable[bytes]) -> bool:
    """Whether a digest is one of several; every one is compared, whichever it is."""
    found = False
    for known in digests:
        found |= hmac.compare_digest(digest, known)
    return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
