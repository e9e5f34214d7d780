from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.http.forms import read_files

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="one"; filename="1.png"\r\nContent-Type: image/png\r\n\r\nfirst\r\n'
    b'--b\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    b'--b\r\ncontent-disposition: form-data; name="two"; filename=""\r\n\r\n\x00\r\n\xff\r\n'
    b"--b--\r\n"
)
KIND = "multipart/form-data; boundary=b"


def test_gives_the_files_in_order_and_no_other_field():
    assert read_files(FORM, KIND, 2) == [b"first", b"\x00\r\n\xff"]
    assert read_files(FORM, 'multipart/form-data; charset=utf-8; boundary="b"', 2) == [b"first", b"\x00\r\n\xff"]


def test_refuses_more_files_than_it_may_take():
    with pytest.raises(BadRequest, match="at most 1 files"):
        read_files(FORM, KIND, 1)


@given(st.integers(0, len(FORM)), st.integers(0, 40), st.binary(max_size=12), st.booleans())
def test_a_damaged_form_is_read_or_refused(at: int, length: int, insert: bytes, cut: bool):
    damaged = FORM[:at] + insert + (b"" if cut else FORM[at + length :])
    for kind in (KIND, "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\xff"):
        try:
            files = read_files(damaged, kind, 3)
        except BadRequest:
            continue
        assert 1 <= len(files) <= 3
