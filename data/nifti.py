"""NIfTI: volumes (nibabel), read in slices and written with the header of their source.

nibabel is imported in the functions that use it: it is optional and slow to import.
"""

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.images import MAX_CHANNELS

NIFTI = (".nii", ".nii.gz")  # suffixes

_unpacking = threading.Lock()


def volume(path: Path) -> Any:
    """The nibabel image in a file, with values still on disk: 3 axes, or 4 with channels last.

    Raises:
        ValueError: it has other axes.
    """
    return _volume(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _volume(path: Path, changed: int) -> Any:
    import nibabel

    image: Any = nibabel.load(path)
    if len(image.shape) not in (3, 4) or (len(image.shape) == 4 and image.shape[3] > MAX_CHANNELS):
        raise ValueError(f"its shape is {image.shape}, not (X, Y, Z) or (X, Y, Z, C) with C up to {MAX_CHANNELS}")
    return image


@functools.lru_cache(maxsize=2)
def _values(path: Path, changed: int) -> np.ndarray:
    """All values of a volume, scaled as the file says: packed files can be read as a whole only."""
    return np.asanyarray(_volume(path, changed).dataobj)


def slice_shape(path: Path, axis: int) -> tuple[int, int, int]:
    """(height, width, channels) of the slices along an axis, from the header of their volume."""
    sides = list(volume(path).shape)
    del sides[axis]
    return sides[1], sides[0], sides[2] if len(sides) > 2 else 1


def read_slice(path: Path, axis: int, index: int) -> np.ndarray:
    """A slice of a volume as (H, W, C): the first of its axes in the volume to the right, the second upwards."""
    with _unpacking:  # threads that ask for the same volume wait for the first
        values = _values(path, path.stat().st_mtime_ns)
    return np.atleast_3d(np.moveaxis(values, axis, 0)[index]).swapaxes(0, 1)[::-1]


def write_volume(slices: Sequence[np.ndarray], path: Path, source: Path, axis: int) -> None:
    """Write slices (H, W, C) along an axis as a volume with the header of `source`.

    Raises:
        ValueError: the slices have another size.
    """
    import nibabel

    original = volume(source)
    values = np.stack([array[::-1].swapaxes(0, 1) for array in slices], axis)
    if values.shape[:3] != original.shape[:3]:
        sizes = ["x".join(map(str, shape[:3])) for shape in (original.shape, values.shape)]
        raise ValueError(f"{path}: {source} has {sizes[0]} voxels, the results of its slices {sizes[1]}")
    values = values[..., 0] if values.shape[3] == 1 else values
    dtype = np.float32 if values.dtype == np.float16 else values.dtype
    header = original.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(type(original)(values.astype(dtype), original.affine, header), path)
