from __future__ import annotations

import io
import pickle  # noqa: TID251  one is sent as an image, to see it refused
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bnfold.errors import BundleError, DataError
from bnfold.preprocessing import Preprocessing, decode_image

FORMATS = ["PNG", "JPEG", "WEBP"]


def to(mode: str, height: int, width: int, scale: float = 1.0) -> Preprocessing:
    channels = {"L": 1, "RGB": 3}[mode]
    return Preprocessing(mode, height, width, scale, (0.0,) * channels, (1.0,) * channels)  # type: ignore[arg-type]


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    lossless = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "JPEG" else {}
    image.save(stream, format, **lossless, **options)
    return stream.getvalue()


def grey(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


# Values


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 99))
def test_normalises_as_the_formula_says(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    wanted = Preprocessing("RGB", height, width, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    found = decode_image(encode(Image.fromarray(pixels)), wanted)
    assert (found.dtype, found.shape, found.flags["C_CONTIGUOUS"]) == (np.float32, (3, height, width), True)
    for channel in range(3):
        exact = (pixels[..., channel] * (1 / 255) - wanted.mean[channel]) / wanted.std[channel]
        assert np.array_equal(found[channel], exact.astype(np.float32))


def test_a_digit_of_sixteen_greys_comes_back_as_trained_on() -> None:
    digit = np.arange(64, dtype=np.float64).reshape(8, 8) % 17
    pixels = np.round(digit / 16 * 255).astype(np.uint8)
    found = decode_image(encode(Image.fromarray(pixels)), to("L", 8, 8, 1 / 255))
    assert np.abs(found[0] - digit / 16).max() <= 0.5 / 255 + 1e-7


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_reads_every_format(format: str, mode: str) -> None:
    image = Image.fromarray(np.full((5, 7), 200, np.uint8)).convert(mode)
    found = decode_image(encode(image, format), to(mode, 5, 7))
    assert found.shape == ((1 if mode == "L" else 3), 5, 7)
    assert np.abs(found - 200).max() <= 1


def test_resizes_only_a_picture_of_another_size() -> None:
    pixels = grey(16, 16)
    assert np.array_equal(decode_image(encode(Image.fromarray(pixels)), to("L", 16, 16))[0], pixels)
    halved = decode_image(encode(Image.fromarray(pixels)), to("L", 8, 8))[0]
    assert abs(halved.mean() - pixels.mean()) < 4  # antialiased: every pixel counts
    checks = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(decode_image(encode(Image.fromarray(checks)), to("L", 4, 4)) - 127.5).max() < 30
    assert decode_image(encode(Image.fromarray(pixels)), to("L", 3, 31)).shape == (1, 3, 31)


# Kinds of pictures


def test_colour_becomes_grey_by_its_luma() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    assert np.abs(decode_image(encode(image), to("L", 2, 2)) - 0.299 * 255).max() < 1


def test_grey_becomes_three_equal_channels() -> None:
    found = decode_image(encode(Image.fromarray(grey(4, 4))), to("RGB", 4, 4))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_a_palette_gives_its_colours_not_its_indices() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode_image(encode(image), to("RGB", 1, 2))[:, 0, :].T.tolist() == [[10, 20, 30], [200, 100, 50]]


def test_one_bit_becomes_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert decode_image(encode(image), to("L", 1, 2)).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_shows_black(format: str) -> None:
    image = Image.new("RGBA", (3, 1), (200, 200, 200, 255))
    image.putpixel((1, 0), (200, 200, 200, 0))
    image.putpixel((2, 0), (200, 200, 200, 128))
    found = decode_image(encode(image, format), to("L", 1, 3)).ravel()
    assert found[0] == 200
    assert found[1] == 0
    assert abs(found[2] - 100) <= 1


def test_a_transparent_colour_of_a_palette_shows_black() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    found = decode_image(encode(image, transparency=0), to("RGB", 1, 2))
    assert found[:, 0, :].T.tolist() == [[0, 0, 0], [200, 100, 50]]


def test_grey_with_alpha_shows_black() -> None:
    image = Image.new("LA", (2, 1), (90, 255))
    image.putpixel((1, 0), (90, 0))
    assert decode_image(encode(image), to("L", 1, 2)).ravel().tolist() == [90, 0]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sixteen_bits_are_scaled_and_not_clipped(mode: str) -> None:
    values = np.array([[0, 128, 129, 256, 32768, 65535]], np.uint16)
    found = decode_image(encode(Image.fromarray(values)), to(mode, 1, 6))
    assert found[0].ravel().tolist() == [0, 0, 1, 1, 128, 255]


def test_a_transparent_grey_of_sixteen_bits_shows_black() -> None:
    values = np.array([[1000, 60000]], np.uint16)
    plain = encode(Image.fromarray(values))
    header = plain[:33]
    chunk = b"tRNS" + struct.pack(">H", 60000)
    marked = header + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[33:]
    assert decode_image(plain, to("L", 1, 2)).ravel().tolist() == [4, 233]
    assert decode_image(marked, to("L", 1, 2)).ravel().tolist() == [4, 0]


def test_reads_a_print_picture() -> None:
    image = Image.new("CMYK", (2, 2), (0, 0, 0, 255))
    assert decode_image(encode(image, "JPEG"), to("L", 2, 2)).max() < 3


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("L", (2, 2), shade) for shade in (10, 250)]
    for format in ("PNG", "WEBP"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:])
        assert np.abs(decode_image(data, to("L", 2, 2)) - 10).max() <= 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_honours_the_orientation(orientation: int, format: str) -> None:
    upright = np.zeros((6, 4), np.uint8)
    upright[:3, :2] = 250
    upright[3:, :2] = 120
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored).repeat(16, 0).repeat(16, 1))
    found = decode_image(encode(image, format, exif=exif.tobytes()), to("L", 96, 64))
    assert np.abs(found[0, 8::16, 8::16] - upright).max() < 8


def test_an_orientation_that_is_none_is_passed_over() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    pixels = grey(4, 6)
    assert np.array_equal(decode_image(encode(Image.fromarray(pixels), exif=exif), to("L", 4, 6))[0], pixels)


# What is no picture


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "bytes (none)"),
        (b"this is a text named digit.png\n", "74 68 69 73"),
        (b"GIF89a" + bytes(20), "47 49 46"),
        (b"%PDF-1.7", "25 50 44 46"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "3c 73 76 67"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "25 21 50 53"),
        (pickle.dumps([1]), "80 04"),
        (b"RIFF\0\0\0\0WAVEfmt ", "52 49 46 46"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_picture(data: bytes, found: str) -> None:
    with pytest.raises(DataError, match="the image is none, as it starts with") as caught:
        decode_image(data, to("L", 8, 8))
    assert found in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_refuses_a_truncated_picture(format: str, kept: float) -> None:
    data = encode(Image.fromarray(grey(64, 64)), format)
    with pytest.raises(DataError, match="the image") as caught:
        decode_image(data[: int(len(data) * kept)], to("L", 64, 64))
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(
    format=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_damaged_picture_gives_pixels_or_a_sentence(format: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encode(Image.fromarray(grey(9, 9)), format))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        found = decode_image(bytes(data), to("L", 8, 8), max_pixels=10_000)
    except DataError as problem:
        assert "\n" not in str(problem)  # noqa: PT017  either outcome is right
    else:
        assert np.isfinite(found).all()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBP"]), st.binary(max_size=200))
def test_a_magic_number_alone_is_no_picture(magic: bytes, rest: bytes) -> None:
    with pytest.raises(DataError):
        decode_image(magic + rest, to("L", 8, 8))


# Pictures that are too large


def png(width: int, height: int, data: bytes = b"") -> bytes:
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDAT" + zlib.compress(data), b"IEND"]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def webp(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png(2**20, 2**20), "1048576x1048576"),
        (png(20_000, 20_000, bytes(20_000 * 2501)), "20000x20000"),  # 50 MB of zeros in 50 KB
        (webp(b"VP8X", bytes(4) + b"\xff\xff\xff" * 2), "16777216x16777216"),
        (webp(b"VP8L", b"\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(5)), "16384x16384"),
        (webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f"), "16383x16383"),
        (encode(Image.new("L", (4, 4)), "JPEG").replace(b"\x00\x04\x00\x04", b"\xff\xff\xff\xff", 1), "65535x65535"),
    ],
)
def test_refuses_a_large_picture_before_it_is_decoded(data: bytes, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=f"the image has {size} pixels; expected at most 33554432; make it smaller"):
        decode_image(data, to("L", 8, 8))


@pytest.mark.parametrize("format", FORMATS)
def test_the_cap_is_the_callers(format: str) -> None:
    data = encode(Image.new("L", (30, 40)), format)
    assert decode_image(data, to("L", 8, 8), max_pixels=1200).shape == (1, 8, 8)
    with pytest.raises(DataError, match="the image has 30x40 pixels; expected at most 1199;"):
        decode_image(data, to("L", 8, 8), max_pixels=1199)


def test_a_large_picture_raises_no_warning() -> None:
    data = encode(Image.new("1", (10_000, 10_000)))  # above the size where Pillow itself would warn
    assert decode_image(data, to("L", 2, 2), max_pixels=10**9).shape == (1, 2, 2)


# The description


@settings(max_examples=100, deadline=None)
@given(
    mode=st.sampled_from(["L", "RGB"]),
    size=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    scale=st.floats(1e-30, 1e30),
    values=st.lists(st.floats(1e-30, 1e30), min_size=6, max_size=6),
)
def test_a_description_comes_back_as_it_was_written(
    mode: Any, size: tuple[int, int], scale: float, values: list[float]
) -> None:
    channels = 1 if mode == "L" else 3
    wanted = Preprocessing(mode, *size, scale, tuple(values[:channels]), tuple(values[3 : 3 + channels]))
    assert Preprocessing.from_dict(wanted.to_dict()) == wanted


GOOD = to("L", 8, 8).to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "CMYK"}, {"mode": None}, {"mode": ["L"]}, {"mode": "RGB"},
        {"height": 0}, {"height": -8}, {"height": 8.0}, {"height": True}, {"width": 2**20}, {"width": "8"},
        {"scale": 0}, {"scale": -1}, {"scale": "1/255"}, {"scale": True}, {"scale": float("nan")},
        {"scale": float("inf")}, {"scale": 10**400},
        {"mean": []}, {"mean": [0, 0, 0]}, {"mean": 0}, {"mean": ["0"]}, {"mean": [float("nan")]},
        {"std": [0]}, {"std": [-1]}, {"std": [float("inf")]}, {"std": None},
        {"resize": "nearest"},
    ],
)  # fmt: skip
def test_refuses_a_description_outside_the_schema(change: dict[str, Any]) -> None:
    assert Preprocessing.from_dict(GOOD) == to("L", 8, 8)
    with pytest.raises(BundleError, match=r"^preprocessing has") as caught:
        Preprocessing.from_dict({**GOOD, **change})
    assert "expected" in str(caught.value)
    assert ("mean" if change == {"mode": "RGB"} else next(iter(change))) in str(caught.value)


@pytest.mark.parametrize("key", sorted(GOOD))
def test_refuses_a_description_with_a_key_missing(key: str) -> None:
    with pytest.raises(BundleError, match=f"preprocessing has no key '{key}'"):
        Preprocessing.from_dict({name: value for name, value in GOOD.items() if name != key})


def test_refuses_bad_values_given_directly() -> None:
    with pytest.raises(BundleError, match="expected 3 numbers, one a channel of mode 'RGB'"):
        Preprocessing("RGB", 8, 8, 1.0, (0.0,), (1.0,))
