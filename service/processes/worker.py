"""One worker process of a server with several: `python -m service.processes.worker`, started by supervisor.py.

It is told what to do in one line of JSON on stdin and tells on stdout, in JSON too, that it serves, or why it cannot,
and from then on, again and again, that its event loop turns.
stdin stays open for as long as the supervisor lives: at its end the worker drains and stops.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

if __name__ == "__main__":  # nothing is accepted yet, and the imports below take a while
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

from bnfold.errors import BnfoldError
from service.processes.heartbeat import Heart
from service.processes.peers import Crew
from service.settings import DESCRIBED, Settings
from service.telemetry.logs import set_up_logs

CANNOT = 2


def main() -> int:
    """Serve until SIGTERM or the end of stdin; 0, or 2 after telling why it cannot."""
    told = sys.stdin.readline()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not break into what is told
    if not told:
        return 0
    task = json.loads(told)
    settings = read_settings(task["settings"])
    crew = Crew(Path(task["folder"]), task["worker"], task["workers"])
    set_up_logs(settings.log_format, crew.worker)
    from service.processes.server import Shift, serve_shift

    def announce(_: str) -> None:
        _tell(out, {"ready": True})
        if settings.hang_timeout:
            Heart(settings.hang_timeout, lambda: _beat(out)).start()

    shift = Shift(settings, announce=announce, crew=crew)
    orphaned = threading.Event()
    threading.Thread(target=_follow, args=(shift, orphaned), name="bnfold-parent", daemon=True).start()
    try:
        serve_shift(shift)
    except BnfoldError as problem:
        _tell(out, {"failed": str(problem)})
        return CANNOT
    finally:
        if orphaned.is_set():  # nobody else is left to clear up
            shutil.rmtree(crew.folder, ignore_errors=True)
    return 0


def write_settings(settings: Settings) -> dict[str, Any]:
    """The settings as JSON takes them."""
    values = {name: getattr(settings, name) for name in DESCRIBED}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def read_settings(values: dict[str, Any]) -> Settings:
    """The settings back. Raises BnfoldError."""
    return Settings(**{name: DESCRIBED[name].accept(value) for name, value in values.items()})


def _follow(shift: Any, orphaned: threading.Event) -> None:
    """Stop with the supervisor: it holds the other end of stdin, which the system closes when it is killed."""
    while sys.stdin.read(4096):
        pass
    orphaned.set()
    if not shift.draining:
        os.kill(os.getpid(), signal.SIGTERM)


def _tell(out: TextIO, what: dict[str, Any]) -> None:
    try:
        out.write(json.dumps(what) + "\n")
        out.flush()
    except OSError:  # the supervisor has gone; _follow sees it
        return


def _beat(out: TextIO) -> None:
    """Tell that the loop turns, unless nobody has read for long: a full pipe must not hold up the loop."""
    waiting = select.poll()
    waiting.register(out, select.POLLOUT)
    if waiting.poll(0):
        _tell(out, {"beat": True})


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to do, and a thread that still runs must not hold it up
