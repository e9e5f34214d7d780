"""From the bytes of a picture to the tensor that the network was trained on: numpy and Pillow, no torch.

`tensor[c, y, x] = (pixel[y, x, c] * scale - mean[c]) / std[c]`, with pixels from 0 to 255. The
picture comes from a stranger: its first bytes tell its format, its size is read and capped before it is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from bnfold.documents import Fields
from bnfold.errors import DataError

MAX_PIXELS = 2**25  # 33.5 million, 128 MiB once decoded to four channels
MAX_SIDE = 4096  # of the network's input, so that a manifest cannot ask for gigabytes
_CHANNELS = {"L": 1, "RGB": 3}
_ORIENTATION = 0x0112  # Exif 2.32, table 4
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input, (C, height, width) float32; C is 1 for mode "L" and 3 for "RGB".

    mean and std have one value a channel. Raises BundleError for a value outside the schema.
    """

    mode: Literal["L", "RGB"]
    height: int
    width: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        checked = Fields("preprocessing", vars(self))
        checked.choice("mode", tuple(_CHANNELS))
        for side in ("height", "width"):
            checked.integer(side, 1, MAX_SIDE)
        if checked.number("scale") <= 0:
            checked.refuse("scale", "a number above 0")
        for key in ("mean", "std"):
            if len(checked.numbers(key)) != self.channels:
                checked.refuse(key, f"{self.channels} numbers, one a channel of mode {self.mode!r}")
        if min(self.std) <= 0:
            checked.refuse("std", "numbers above 0")

    @property
    def channels(self) -> int:
        """1 for "L", 3 for "RGB"."""
        return _CHANNELS[self.mode]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; `from_dict` reads them back."""
        return {
            "mode": self.mode,
            "height": self.height,
            "width": self.width,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @staticmethod
    def from_dict(document: Mapping[str, Any], what: str = "preprocessing") -> Preprocessing:
        """Read what `to_dict` wrote. Raises BundleError for an unknown or missing key or a wrong value."""
        fields = Fields.of(document, what, ("mode", "height", "width", "scale", "mean", "std"))
        return Preprocessing(
            mode=cast(Literal["L", "RGB"], fields.choice("mode", tuple(_CHANNELS))),
            height=fields.integer("height", 1, MAX_SIDE),
            width=fields.integer("width", 1, MAX_SIDE),
            scale=fields.number("scale"),
            mean=fields.numbers("mean"),
            std=fields.numbers("std"),
        )


def decode_image(
    data: bytes, preprocessing: Preprocessing, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Decode a PNG, JPEG or WebP picture to (C, height, width), float32.

    The first frame counts, Exif orientation is honoured, transparency shows black, sixteen bits a channel become
    eight, colour becomes grey by ITU-R 601 luma, and a picture of another size is resized (bilinear, antialiased).
    Raises DataError for what is no such picture, is damaged, or has more than max_pixels.
    """
    try:
        with _open(data, max_pixels) as picture:
            picture.load()
            turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
            upright = picture.transpose(turn) if turn is not None else picture
            pixels = _to_mode(upright, preprocessing.mode)
    except DataError:
        raise
    except Exception as problem:  # Pillow's decoders raise nearly any type on hostile bytes
        found = str(problem).strip().splitlines()
        raise DataError(
            f"the image is damaged ({found[0][:120] if found else type(problem).__name__});"
            " expected a whole PNG, JPEG or WebP file; send it again"
        ) from problem
    if pixels.size != (preprocessing.width, preprocessing.height):
        pixels = pixels.resize((preprocessing.width, preprocessing.height), Image.Resampling.BILINEAR)
    array = np.asarray(pixels, dtype=np.float64).reshape(
        preprocessing.height, preprocessing.width, preprocessing.channels
    )
    normalised = (array * preprocessing.scale - np.asarray(preprocessing.mean)) / np.asarray(preprocessing.std)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)


def _open(data: bytes, max_pixels: int) -> ImageFile:
    """Read the header with the one plugin that its magic number names.

    `Image.open` would try others, and warns about large pictures through the process-wide warning filter.
    """
    stream = io.BytesIO(data)
    picture: ImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        picture = PngImagePlugin.PngImageFile(stream)
    elif data.startswith(b"\xff\xd8\xff"):
        picture = JpegImagePlugin.JpegImageFile(stream)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_pixels(_webp_size(data), max_pixels)  # its plugin allocates the canvas on opening
        picture = WebPImagePlugin.WebPImageFile(stream)
    else:
        raise DataError(
            f"the image is none, as it starts with the bytes {data[:8].hex(' ') or '(none)'};"
            " expected PNG, JPEG or WebP; convert it to one of these"
        )
    _check_pixels(picture.size, max_pixels)
    return picture


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        found = f"the image has {size[0]}x{size[1]} pixels"
        raise DataError(f"{found}; expected at most {max_pixels}; make it smaller")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height as the first chunk declares them (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(body) == 10:
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise DataError("the image is a WebP file that does not state its size; expected a whole file; send it again")


def _to_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):  # sixteen-bit grey, which convert() would clip at 255
        values = np.asarray(picture).astype(np.uint32)
        values[values == picture.info.get("transparency", -1)] = 0
        picture = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layers.size, (0, 0, 0, 255)), layers).convert("RGB")
    return picture.convert(mode)
