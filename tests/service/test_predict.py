from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from service_networks import LABELS, PICTURES
from service_runs import Running, running

from bnfold.preprocessing import decode_image
from service.settings import Settings

PREDICT = "/models/digits/predict"
PIXELS = (np.random.default_rng(5).random((8, 8)) * 255).astype(np.uint8)


def picture(kind: str = "png", pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def true_predictions(server: Running, x: np.ndarray) -> np.ndarray:
    """Probabilities in float64 from the logits of the engine."""
    logits = server.hub.repository.find("digits").run({"input": x})["logits"].astype(np.float64)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def check(answer: httpx.Response, chances: np.ndarray, top: int = 5) -> None:
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["model"], document["version"], document["output_kind"]) == ("digits", "1", "logits")
    assert len(document["predictions"]) == len(chances)
    for found, row in zip(document["predictions"], chances, strict=True):
        order = np.argsort(-row)
        assert [each["class"] for each in found["top"]] == order[:top].tolist()
        assert [each["label"] for each in found["top"]] == [LABELS[index] for index in order[:top]]
        assert found["class"] == order[0]
        assert found["label"] == LABELS[order[0]]
        assert abs(found["probability"] - row[order[0]]) < 1e-5
        assert abs(sum(each["probability"] for each in found["top"]) - row[order[:top]].sum()) < 1e-5


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(
    "content_type", ["right", "application/octet-stream", "application/x-www-form-urlencoded", None]
)
def test_a_picture_as_the_body(client: httpx.Client, server: Running, kind: str, content_type: str | None):
    data = picture(kind)
    headers = (
        {} if content_type is None else {"content-type": f"image/{kind}" if content_type == "right" else content_type}
    )
    check(
        client.post(PREDICT, content=data, headers=headers),
        true_predictions(server, decode_image(data, PICTURES)[None]),
    )


def test_pictures_of_any_size_and_mode_are_made_to_fit(client: httpx.Client, server: Running):
    pixels = (np.random.default_rng(6).random((40, 30, 3)) * 255).astype(np.uint8)
    data = picture(pixels=pixels)
    check(client.post(PREDICT, content=data), true_predictions(server, decode_image(data, PICTURES)[None]))


def test_a_picture_that_takes_too_long_to_decode_is_503(digits_only: Path, monkeypatch: pytest.MonkeyPatch):
    gate = threading.Event()
    monkeypatch.setattr("service.http.predict.decode_image", lambda *_, **__: gate.wait(60))
    settings = Settings(repository=digits_only, device="cpu", port=0, threads=1, request_timeout=0.05)
    with running(settings) as server:
        answer = httpx.post(f"{server.url}/predict", content=picture())
        gate.set()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_a_picture_with_more_pixels_than_are_allowed_is_400(digits_only: Path):
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1, max_pixels=1600)) as server:
        for side, status in ((40, 200), (41, 400)):
            data = picture(pixels=np.zeros((40, side), np.uint8))
            answer = httpx.post(f"{server.url}/predict", content=data)
            assert answer.status_code == status
    assert "1600" in answer.json()["error"]


def test_a_form_that_takes_long_to_read_keeps_nobody_else_waiting(digits_only: Path, monkeypatch: pytest.MonkeyPatch):
    readers: list[str] = []

    def read(*_: object) -> list[bytes]:
        readers.append(threading.current_thread().name)
        return [picture()]

    monkeypatch.setattr("service.http.predict.read_files", read)
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1)) as server:
        assert httpx.post(f"{server.url}/predict", files={"image": b""}).status_code == 200
    assert readers[0].startswith("bnfold-decode")


def test_a_form_with_pictures(client: httpx.Client, server: Running):
    pictures = [picture(), picture("jpeg"), picture("webp", 255 - PIXELS)]
    files = [("image", (f"{at}.img", data, "image/any")) for at, data in enumerate(pictures)]
    batch = np.stack([decode_image(data, PICTURES) for data in pictures])
    check(client.post(PREDICT, files=files, data={"note": "three"}), true_predictions(server, batch))


X = np.random.default_rng(7).random((3, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "body",
    [
        {"instances": X.tolist()},
        {"instances": X.reshape(3, 64).tolist()},
        X.tolist(),
    ],
    ids=["nested", "flat", "without-the-object"],
)
def test_rows_as_json(client: httpx.Client, server: Running, body: Any):
    check(client.post(PREDICT, json=body), true_predictions(server, X))


def test_one_row_may_stand_without_a_list_around_it(client: httpx.Client, server: Running):
    check(client.post(PREDICT, json={"instances": X[0].tolist()}), true_predictions(server, X[:1]))


def test_top_says_how_many_classes_to_name(client: httpx.Client, server: Running):
    check(client.post(f"{PREDICT}?top=1", json=X.tolist()), true_predictions(server, X), top=1)
    check(client.post(f"{PREDICT}?top=1000", json=X.tolist()), true_predictions(server, X), top=10)
    for bad in ("0", "-1", "many", "1001"):
        answer = client.post(f"{PREDICT}?top={bad}", json=X.tolist())
        assert answer.status_code == 400
        assert "top" in answer.json()["error"]


def test_raw_outputs_come_back_as_they_are(client: httpx.Client):
    rows = [{"left": [1, 2, 3, 4], "right": [0, 0, 0, 0.5]}, {"left": [0, 0, 0, 0], "right": [1, 1, 1, 1]}]
    answer = client.post("/models/pair/predict", json={"instances": rows})
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert [each["outputs"]["doubled"] for each in predictions] == [[2, 4, 6, 8], [0, 0, 0, 0]]
    assert [len(each["outputs"]["total"]) for each in predictions] == [3, 3]


def test_pictures_in_and_raw_tensors_out_where_sizes_are_free(client: httpx.Client):
    answer = client.post("/models/free/predict", json={"instances": np.ones((2, 1, 3, 4)).tolist()})
    assert answer.status_code == 200, answer.text
    assert np.shape(answer.json()["predictions"][0]["outputs"]["output"]) == (2, 3, 4)


PAIR = "/models/pair/predict"
IN_FORM = "multipart/form-data; boundary=b"
FIELD = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nhello\r\n'
FORM = b'--b\r\nContent-Disposition: form-data; name="x"; filename="x"\r\n\r\nhello\r\n--b--\r\n'
REFUSED: dict[str, tuple[str, bytes, str, str]] = {
    "a text as a picture": (PREDICT, b"hello", "image/png", "PNG, JPEG or WebP"),
    "nothing as a picture": (PREDICT, b"", "image/png", "PNG, JPEG or WebP"),
    "a picture cut short": (PREDICT, picture()[:60], "image/png", "damaged"),
    "a GIF": (PREDICT, b"GIF89a" + bytes(30), "image/gif", "PNG, JPEG or WebP"),
    "a text in a form": (PREDICT, FORM, IN_FORM, "PNG, JPEG or WebP"),
    "a form without a file": (PREDICT, FIELD + b"--b--\r\n", IN_FORM, "no file"),
    "a form without a boundary": (PREDICT, FORM, "multipart/form-data", "form"),
    "a form with another boundary": (PREDICT, FORM, "multipart/form-data; boundary=c", "form"),
    "a form cut short in a head": (PREDICT, FORM[:30], IN_FORM, "cut short"),
    "a form cut short in a file": (PREDICT, FORM[:-12], IN_FORM, "cut short"),
    "a form with too many fields": (PREDICT, FIELD * 20 + b"--b--\r\n", IN_FORM, "at most 1024 files, 16 fields"),
    "a form with a long boundary": (PREDICT, FORM, "multipart/form-data; boundary=" + "b" * 300, "form"),
    "no JSON": (PREDICT, b"hello", "application/json", "not JSON"),
    "an empty body": (PREDICT, b"", "application/json", "not JSON"),
    "no instances": (PREDICT, b"{}", "application/json", "instances"),
    "empty instances": (PREDICT, b'{"instances": []}', "application/json", "instances"),
    "instances of text": (PREDICT, b'{"instances": "all"}', "application/json", "instances"),
    "a number": (PREDICT, b"7", "application/json", "instances"),
    "wrong shape": (PREDICT, b'{"instances": [[1, 2, 3]]}', "application/json", "expected [-1, 1, 8, 8]"),
    "rows that differ": (PREDICT, b'{"instances": [[1, 2, 3], [1]]}', "application/json", "input 'input'"),
    "null": (PREDICT, ('{"instances": [[' + "null," * 63 + "1]]}").encode(), "application/json", "no null"),
    "text for numbers": (PREDICT, ('{"instances": [[' + '"1",' * 63 + "1]]}").encode(), "application/json", "no null"),
    "objects for a single input": (PREDICT, b'{"instances": [{"image": [1]}]}', "application/json", "'input'"),
    "an input is missing": (PAIR, b'{"instances": [{"left": [1, 2, 3, 4]}]}', "application/json", "'right'"),
    "rows for two inputs": (PAIR, b'{"instances": [[1, 2, 3, 4]]}', "application/json", "'left', 'right'"),
    "a picture for numbers": (PAIR, picture(), "image/png", "no preprocessing"),
    "which model": ("/predict", b'{"instances": [[1]]}', "application/json", "/models/digits/predict"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_by_name_in_one_sentence(client: httpx.Client, case: str):
    path, body, content_type, named = REFUSED[case]
    answer = client.post(path, content=body, headers={"content-type": content_type})
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert named in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_an_unknown_model_is_404_and_a_huge_body_413(client: httpx.Client):
    assert client.post("/models/digit/predict", json=X.tolist()).status_code == 404
    answer = client.post(PREDICT, content=bytes(64 * 2**20 + 1), headers={"content-type": "image/png"})
    assert answer.status_code == 413
    assert list(answer.json()) == ["error"]


def test_too_many_rows_are_refused(client: httpx.Client):
    answer = client.post(PREDICT, json={"instances": [[0] * 64] * 1025})
    assert answer.status_code == 400
    assert "1025 rows" in answer.json()["error"]


def test_a_model_that_overflows_is_no_answer(client: httpx.Client):
    answer = client.post(PREDICT, json={"instances": [[3e38] * 64]})
    assert answer.status_code == 400
    assert "range" in answer.json()["error"]


@pytest.fixture(scope="module")
def alone(digits_only: Path) -> Iterator[Running]:
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1)) as started:
        yield started


def test_a_single_model_needs_no_name(alone: Running):
    check(httpx.post(f"{alone.url}/predict", json=X.tolist()), true_predictions(alone, X))
