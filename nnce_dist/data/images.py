"""Encoded pictures to pixels: only JPEG and PNG, only of the size that was asked for, never a decompression bomb."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG")
MAX_PIXELS = 64 * 2**20  # a picture to be resized may have so many; decoding one takes 200 MB
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def decode(encoded: bytes, size: int, resize: bool, name: str) -> np.ndarray:
    """The pixels of one picture, uint8 (3, size, size); greyscale is repeated over the channels, transparency dropped.

    Another size is refused, or, with `resize`, the centred square is reduced by averaging over areas. `name` says where
    the picture came from. Raises ValueError with one line.
    """
    with _opened(encoded, name) as image:
        _check(image, size, resize, name)
        pixels = np.asarray(_square(image.convert("RGB"), size))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def check_size(encoded: bytes, size: int, resize: bool, name: str) -> None:
    """Looks at a picture's header only; raises ValueError with one line as `decode` would."""
    with _opened(encoded, name) as image:
        _check(image, size, resize, name)


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(file, "PNG", compress_level=6)
    return file.getvalue()


class _Refused(ValueError):
    """A picture that can be read but is not wanted."""


@contextmanager
def _opened(encoded: bytes, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            yield image
    except _Refused:
        raise
    except Exception as error:  # damaged files make PIL raise almost anything
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: not a readable JPEG or PNG picture ({cause})") from error


def _check(image: Image.Image, size: int, resize: bool, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _Refused(f"{name}: {width}x{height} is more than {MAX_PIXELS} pixels; refused")
    if image.mode not in _EIGHT_BIT_MODES:
        raise _Refused(f"{name}: pictures of mode {image.mode!r} are not supported; convert them to 8 bits per channel")
    if (width, height) != (size, size) and not resize:
        raise _Refused(
            f"{name}: the picture is {width}x{height}, not {size}x{size}; "
            "set data.resize=true to resize pictures, or data.image_size to their size"
        )


def _square(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
