"""Codecs of optional libraries: torchcodec (`pip install ".[fast]"`) and imagecodecs (`pip install ".[formats]"`).

Import this module inside functions, not at the top of another module: the first import loads both libraries.

Attributes:
    torchcodec: the module torchcodec.decoders, or None if it is not installed or does not load.
    imagecodecs: the module, or None if it is not installed.
"""

import logging
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from data.image_folder import MissingLibrary

log = logging.getLogger(__name__)


def load_torchcodec() -> ModuleType | None:
    """Import torchcodec.decoders; log one warning if it is installed but unusable."""
    try:
        from torchcodec import decoders
        from torchcodec.decoders import decode_jpeg, decode_png  # noqa: F401  # versions before 0.16 lack them
    except ModuleNotFoundError:
        return None
    except Exception as error:  # OSError, RuntimeError or ImportError, if it is built for another torch
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning(
            "torchcodec does not load (%s). Pillow decodes JPEG files instead: the same pixels, but slower. "
            "Install the torchcodec that fits torch %s, or uninstall it.",
            reason,
            torch.__version__,
        )
        return None
    return decoders


def load_imagecodecs() -> ModuleType | None:
    """Import imagecodecs."""
    try:
        import imagecodecs
    except ImportError:  # tifffile then does without it, too
        return None
    return imagecodecs


torchcodec = load_torchcodec()
imagecodecs = load_imagecodecs()


def decode_png(path: Path, *, has_color_key: bool = False) -> np.ndarray:
    """Decode a PNG with 16 bits per channel, of any number of channels, to (H, W, C) of uint16.

    Args:
        path: the file.
        has_color_key: whether the file names a transparent color (a tRNS chunk), which becomes an alpha channel.

    Raises:
        MissingLibrary: a library that reads it is not installed.
        Exception: the file is damaged; the type depends on the library.
    """
    content = path.read_bytes()
    if imagecodecs is not None:
        return np.atleast_3d(imagecodecs.png_decode(content))
    if torchcodec is not None and not has_color_key:  # torchcodec ignores the color key
        encoded = torch.from_numpy(np.frombuffer(bytearray(content), np.uint8))
        pixels: Tensor = torchcodec.decode_png(encoded, mode="UNCHANGED", output_dtype=torch.uint16)
        return pixels.permute(1, 2, 0).numpy()
    raise MissingLibrary.of(path, "a PNG with 16 bits per channel and color or transparency")


def encode_png(array: np.ndarray, path: Path) -> None:
    """Write (H, W, C) of uint16 as a PNG.

    Raises:
        MissingLibrary: imagecodecs is not installed.
    """
    if imagecodecs is None:
        raise MissingLibrary.of(path, f"a PNG with {array.shape[2]} channels of 16 bits", "write")
    path.write_bytes(imagecodecs.png_encode(array))
