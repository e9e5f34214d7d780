"""What can be set on the server, checked once, in one frozen class."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.setting import Setting, describe, setting

Device = Literal["auto", "cpu", "cuda"]
LogFormat = Literal["text", "json"]
ConvSearch = Literal["exhaustive", "heuristic", "default"]

_MIB = 2**20
_DAY = 86400.0
_SHORTEST_HANG = 1.0  # seconds: a busy machine holds a process up for tenths of one
_POLICY = re.compile(r"latest|all|latest:[1-9][0-9]{0,5}|specific:[1-9][0-9]{0,17}(,[1-9][0-9]{0,17})*", re.A)


def count_cores() -> int:
    """The cores that this process may use, which is fewer than the machine has under taskset or cpusets."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """How to serve. Raises BnfoldError for a value that a field does not take.

    service.configuration fills it from flags, BNFOLD_* variables and a TOML file; docs/settings.md lists the fields.
    """

    repository: Path = setting(Path("models"), "folder of <name>/<version>/ bundles", group="Models", flag="REPOSITORY")
    version_policy: str = setting(
        "latest", "versions of each model to serve: latest, latest:N (the newest N), all, or specific:1,3"
    )
    poll_interval: float = setting(
        0.0, "time between two looks for changes in the repository; 0 turns them off", low=0, high=_DAY, unit="s"
    )
    state_dir: Path | None = setting(
        None, "folder for what outlives a restart: which models were loaded and unloaded by request"
    )

    host: str = setting("127.0.0.1", "address to listen on", group="Address")
    port: int = setting(8000, "port to listen on; 0 takes a free one", low=0, high=65535)
    grpc_port: int | None = setting(
        None, "port for gRPC, which is off without it; 0 takes a free one", low=0, high=65535
    )

    api_key_file: Path | None = setting(
        None, "file of the keys that requests need, one a line; without it nobody is asked for one", group="Security"
    )
    admin_key_file: Path | None = setting(
        None, "file of the keys that load and unload models, which is off without it; they may also infer"
    )
    insecure: bool = setting(False, "let other machines in without a key")
    tls_cert: Path | None = setting(None, "certificate for TLS, a PEM file with its chain")
    tls_key: Path | None = setting(None, "private key of the certificate, a PEM file without a password")

    device: Device = setting(
        "auto", "cuda means CUDA or an error; auto takes it where it starts", group="Engine and batches"
    )
    workers: int = setting(1, "processes that serve, each with the models in its own memory", low=1, high=256)
    threads: int = setting(0, "threads of one process that call the runtime; 0 for one a core", low=0, high=1024)
    max_batch_rows: int = setting(
        64, "rows that are put together; a larger request runs alone, and its memory is given back", low=1, high=2**20
    )
    conv_search: ConvSearch = setting(
        "exhaustive", "how CUDA chooses its convolutions; exhaustive is what the load gate judges"
    )
    max_delay: float = setting(0.0, "time that a batch may wait for more rows", low=0, high=10, unit="s")
    max_inline: float = setting(
        0.002, "time of a batch up to which it runs on the event loop of a CPU server; 0 for always in a thread",
        low=0, high=1, unit="s",
    )  # fmt: skip
    compress_answers: bool = setting(True, "compress answers of inference for clients that ask for it")

    max_request_rows: int = setting(1024, "rows of one request", low=1, high=2**20, group="Limits")
    max_queue_rows: int = setting(4096, "rows of one model that may wait", low=1, high=2**24)
    max_body_bytes: int = setting(
        64 * _MIB, "one request body, also once decompressed", low=1024, high=2**31, unit="bytes"
    )
    max_json_bytes: int = setting(8 * _MIB, "the JSON in a body", low=1024, high=2**31, unit="bytes")
    max_json_values: int = setting(
        2**20, "numbers in the JSON of a body; each list and each object counts as eight", low=1024, high=2**31
    )
    max_pixels: int = setting(2**25, "pixels of one picture; four bytes each once decoded", low=1, high=2**31)
    max_connections: int = setting(
        1024, "connections of one process, and those of gRPC beside; the next is told 503", low=1, high=2**20
    )
    max_memory_bytes: int = setting(
        512 * _MIB,
        "all request bodies in flight together, and all answers that are not read yet",
        low=1024,
        high=2**40,
        unit="bytes",
    )

    request_timeout: float = setting(
        30.0, "time from the queue to the answer", low=0.001, high=_DAY, unit="s", group="Times"
    )
    header_timeout: float = setting(10.0, "time for the head of a request", low=0.01, high=3600, unit="s")
    body_timeout: float = setting(
        20.0, "time for its body, and a second more for every 64 KiB received", low=0.01, high=3600, unit="s"
    )
    keep_alive_timeout: float = setting(
        75.0, "time that a connection may idle between two requests", low=0.01, high=3600, unit="s"
    )
    write_timeout: float = setting(
        20.0,
        "time until a client has to have read of its answer, 64 KiB for each second",
        low=0.01,
        high=3600,
        unit="s",
    )
    drain_delay: float = setting(
        0.5, 'time between "not ready" and the end of accepting when the server stops', low=0, high=3600, unit="s"
    )
    drain_timeout: float = setting(30.0, "time to finish what was accepted", low=0, high=3600, unit="s")
    hang_timeout: float = setting(
        30.0,
        "time without a turn of its event loop until one of several workers is killed and replaced; 0: never",
        low=0,
        high=_DAY,
        unit="s",
    )

    log_format: LogFormat = setting("text", "lines for people, or one JSON object a line", group="Observability")
    access_log: bool = setting(False, "log every request")
    otlp_endpoint: str = setting("", "where OpenTelemetry traces go, as in http://127.0.0.1:4318; empty: nowhere")

    def __post_init__(self) -> None:
        for name, described in DESCRIBED.items():
            described.check(getattr(self, name))
        if not self.host:
            raise DESCRIBED["host"].refuse(self.host, "a host name or an address")
        if not _POLICY.fullmatch(self.version_policy):
            raise DESCRIBED["version_policy"].refuse(
                self.version_policy, "latest, latest:N, all, or specific: and version numbers with commas"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_key", "tls_cert") if self.tls_cert is None else ("tls_cert", "tls_key")
            raise DESCRIBED[missing].refuse("", f"a PEM file, because {DESCRIBED[given].flag} is given")
        if 0 < self.hang_timeout < _SHORTEST_HANG:
            raise DESCRIBED["hang_timeout"].refuse(
                self.hang_timeout, f"0, or at least {DESCRIBED['hang_timeout'].write(_SHORTEST_HANG)}"
            )
        if "@" in self.otlp_endpoint:
            raise DESCRIBED["otlp_endpoint"].refuse("", "an address without a password in it")
        self._check_at_least("max_queue_rows", "max_request_rows")
        self._check_at_least("max_memory_bytes", "max_body_bytes")

    def _check_at_least(self, larger: str, smaller: str) -> None:
        least = getattr(self, smaller)
        if getattr(self, larger) < least:
            raise DESCRIBED[larger].refuse(
                getattr(self, larger), f"at least {smaller} ({DESCRIBED[smaller].write(least)})"
            )

    @property
    def thread_count(self) -> int:
        """Threads in front of the runtime."""
        return self.threads or count_cores()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


DESCRIBED: dict[str, Setting] = describe(Settings)
