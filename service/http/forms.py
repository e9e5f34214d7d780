"""The files of a multipart/form-data body (RFC 7578), in memory: it is bounded, and nothing of it reaches the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_FIELDS = 16


def read_files(body: bytes, content_type: str, most: int) -> list[bytes]:
    """The files of a form, in order; other fields are passed over. Raises BadRequest, also above `most` files."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _bad("its Content-Type names no boundary")
    form = _Form(most)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as problem:
        raise _bad(str(problem)[:120].rstrip(".") or "it is damaged") from None
    if not form.is_whole:
        raise _bad("it is cut short")
    if not form.files:
        raise BadRequest("the form holds no file; expected a picture, as `curl -F image=@picture.png` sends it")
    return form.files


class _Form:
    """What the parser has seen."""

    def __init__(self, most: int) -> None:
        self.files: list[bytes] = []
        self.is_whole = False
        self._most = most
        self._fields = 0
        self._header = b""
        self._value = b""
        self._is_file = False
        self._data: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        """For the parser, by the names that it has for them."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._is_file = False
        self._data = []

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._is_file = b"filename" in parse_options_header(self._value)[1]
        self._header = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._data.append(data[start:end])

    def _end(self) -> None:
        if self._is_file:
            self.files.append(b"".join(self._data))
        else:
            self._fields += 1
        if len(self.files) > self._most or self._fields > _MAX_FIELDS:
            raise BadRequest(f"the form has too many parts; expected at most {self._most} files, {_MAX_FIELDS} fields")

    def _finish(self) -> None:
        self.is_whole = True


def _bad(found: str) -> BadRequest:
    return BadRequest(f"the form cannot be read ({found}); send multipart/form-data with a picture in it")
