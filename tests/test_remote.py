"""One request to a server, whatever the server does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bnfold import remote
from bnfold.errors import BnfoldError
from bnfold.remote import Reply, ask, printable


@contextmanager
def saying(answer: bytes, *, slowly: float = 0.0, times: int = 1) -> Iterator[str]:
    """A listener that says the same bytes to each who comes; slowly: seconds between one byte and the next."""
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        for _ in range(times):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(2**16)
                try:
                    for at in range(len(answer)) if slowly else ():
                        connection.sendall(answer[at : at + 1])
                        if over.wait(slowly):
                            return
                    connection.sendall(b"" if slowly else answer)
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_an_answer_has_status_headers_and_body() -> None:
    with saying(b'HTTP/1.1 201 Created\r\nContent-Length: 8\r\nX-Name:  a\r\n\r\n{"a": 1}') as url:
        found = ask(url)
    assert (found.status, found.headers["x-name"], found.document()) == (201, "a", {"a": 1})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 2**17 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 200 + b"\r\n",
    ],
)
def test_what_is_no_answer_is_one_sentence(answer: bytes) -> None:
    with saying(answer) as url, pytest.raises(BnfoldError, match="gave no answer") as raised:
        ask(url)
    assert "\n" not in str(raised.value)


def test_an_answer_that_comes_drop_by_drop_is_not_waited_for() -> None:
    """Each drop comes within the time of a read; all of them together do not."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with saying(head + b"a" * 1000, slowly=0.01) as url, pytest.raises(BnfoldError, match="too long"):
        ask(url, seconds=0.5)


def test_an_answer_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 10)
    with saying(b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 11) as url, pytest.raises(BnfoldError, match="longer than 10"):
        ask(url)


def test_a_redirect_is_not_followed() -> None:
    with saying(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n") as url:
        assert ask(url, b"body").status == 307


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as url:
        assert ask(url).status == 200


@pytest.mark.parametrize("body", [b"NaN", b'{"a": Infinity}', b"[" * 10**6, b"\xff", b""])
def test_a_document_is_strict_json(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Reply(200, {}, body).document()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [(b'{"error": "no\\nsuch\\u001b[2J model"}', "no such?[2J model"), (b"[]", "Not Found"), (b"", "Not Found")],
)
def test_an_error_is_one_printable_sentence(body: bytes, sentence: str) -> None:
    assert Reply(404, {}, body).error() == sentence
    assert printable("a\tb\x00") == "a b?"
