"""Put pairs of pictures side by side, for --dataset_mode aligned.

python datasets/combine_A_and_B.py --fold_A DATA/A --fold_B DATA/B --fold_AB DATA joins DATA/A/train/1.jpg and
DATA/B/train/1.jpg to DATA/train/1.jpg.
"""

import argparse
import math
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script's own folder is all that Python looks in

from data.arrays import MAX_CHANNELS, array_kind, read_array
from data.image_file import read_rgb
from data.image_folder import DataError, MissingLibrary, list_images, nearest_folder, tree
from options import values
from util.command import run_command


def combine(
    fold_A: Path,
    fold_B: Path,
    fold_AB: Path,
    *,
    num_imgs: float = math.inf,
    use_AB: bool = False,
    threads: int | None = None,
) -> int:
    """Join the pictures of `fold_A`, on the left, with those of the same name in `fold_B`, into `fold_AB`.

    Sub-folders, such as train and test, are kept; pictures of A alone are left out, with a line that says so. Grey and
    colour pictures of 8 bits become RGB, transparent parts white; .jpg files have quality 95. All others, of 16 bits,
    floats or other channels, in PNG, TIFF and .npy, keep their values and channels.

    Args:
        num_imgs: the most pairs to take of each sub-folder of `fold_A`, in the order of their names.
        use_AB: join 1_A.jpg with 1_B.jpg, to 1.jpg.
        threads: pairs to work on at a time; None = as many as the processor can.

    Returns:
        The number of pairs.

    Raises:
        DataError: a folder is missing, no picture has a partner, or the two pictures of a pair do not fit together.
        MissingLibrary: a file needs a library that is not installed.
    """
    if fold_AB.resolve() in (fold_A.resolve(), fold_B.resolve()):
        raise DataError(f"--fold_AB {fold_AB} would overwrite the pictures it is made from: choose another folder.")
    for flag, folder in (("--fold_A", fold_A), ("--fold_B", fold_B)):
        if not folder.is_dir():
            raise DataError(f"{flag} {folder}: no such folder.\nFound:\n{tree(nearest_folder(folder))}")
    pairs = find_pairs(fold_A, fold_B, num_imgs=num_imgs, use_AB=use_AB)
    with ThreadPoolExecutor(threads) as pool:
        jobs = pool.map(lambda pair: join(pair[0], pair[1], fold_AB / pair[2]), pairs)
        for _ in tqdm(jobs, total=len(pairs), unit="pair", disable=None):
            pass
    return len(pairs)


def find_pairs(fold_A: Path, fold_B: Path, *, num_imgs: float, use_AB: bool) -> list[tuple[Path, Path, Path]]:
    """The files of A and B that belong together, and the path of the result relative to its folder; see `combine`."""
    pairs, alone = [], []
    taken: Counter[str] = Counter()
    for path_A in list_images(fold_A):
        name_A = path_A.relative_to(fold_A)
        if use_AB and "_A." not in name_A.name:
            continue
        name_B, name_AB = (
            name_A.with_name(name_A.name.replace("_A.", end)) if use_AB else name_A for end in ("_B.", ".")
        )
        if not (fold_B / name_B).is_file():
            alone.append(f"{path_A} (no {fold_B / name_B})")
        elif taken[str(name_A.parent)] < num_imgs:
            taken[str(name_A.parent)] += 1
            pairs.append((path_A, fold_B / name_B, name_AB))
    if not pairs:
        rule = "1_A.jpg belongs to 1_B.jpg" if use_AB else "both have the same name; with --use_AB, 1_A.jpg and 1_B.jpg"
        found = f": {alone[0]}" if alone else f".\nFound:\n{tree(fold_A)}"
        raise DataError(f"No picture of --fold_A {fold_A} has a partner in --fold_B {fold_B} ({rule}){found}")
    if alone:
        print(f"left out: {len(alone)} pictures without a partner, such as {alone[0]}", file=sys.stderr)
    return pairs


def join(path_A: Path, path_B: Path, path_AB: Path) -> None:
    """Write the pictures of two files side by side. DataError, with both names, if they do not fit together."""
    A, B = read(path_A), read(path_B)
    sizes, depths = [f"{x.shape[1]}x{x.shape[0]}" for x in (A, B)], [f"{x.shape[2]} x {x.dtype}" for x in (A, B)]
    for what, (of_A, of_B) in (("sizes", sizes), ("channels", depths)):
        if of_A != of_B:
            raise DataError(f"{path_A} and {path_B} have different {what}, {of_A} and {of_B}: a pair needs equal ones.")
    path_AB.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(np.concatenate([A, B], axis=1), path_AB)
    except MissingLibrary:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot write {path_AB} ({error}).") from error


def write(array: np.ndarray, path: Path) -> None:
    """Write (H, W, C) as a file of the kind that the suffix of `path` names.

    Raises:
        ValueError: files of this kind cannot hold it.
        MissingLibrary: a library that can write it is not installed.
    """
    suffix, channels = path.suffix.lower(), array.shape[2]
    if suffix == ".npy":
        # the reader takes the one axis of at most MAX_CHANNELS for that of the channels
        array = array if array.shape[0] > MAX_CHANNELS else array.transpose(2, 0, 1)
        np.save(path, array.reshape(array.shape[:2]) if array.shape[2] == 1 else array, allow_pickle=False)
    elif array.dtype == np.uint8 and channels == 3:
        Image.fromarray(array).save(path, quality=95)
    elif suffix in (".tif", ".tiff") and channels == 3:
        tifffile.imwrite(path, array, photometric="rgb", planarconfig="contig", metadata=None)
    elif suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array.transpose(2, 0, 1), photometric="minisblack", metadata=None)  # a page a channel
    elif suffix == ".png" and array.dtype in (np.uint8, np.uint16) and channels <= 4:
        from data.decoders import imagecodecs  # slow to import

        if array.dtype == np.uint8 or channels == 1:
            Image.fromarray(array[..., 0] if channels == 1 else array).save(path)
        elif imagecodecs is not None:
            path.write_bytes(imagecodecs.png_encode(array))
        else:
            raise MissingLibrary.of(path, f"a PNG with {channels} channels of 16 bits", "write")
    else:
        raise ValueError(f"{suffix} files hold no {channels} channels of {array.dtype}: save A and B as .tif or .npy")


def read(path: Path) -> np.ndarray:
    """The upright picture in a file, (H, W, C): of 8 bits as RGB, else as it is."""
    try:
        return read_array(path) if array_kind(path) else np.asarray(read_rgb(path))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for a broken file
        raise DataError(f"Cannot read the image {path} ({error}): replace or remove this file.") from error


def main(argv: list[str] | None = None) -> int:
    """Parse and combine. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--fold_A", type=Path, required=True, help="folder of pictures for the left, or of folders such as train, test")
    add("--fold_B", type=Path, required=True, help="the same for the right, with files of the same names")
    add("--fold_AB", type=Path, required=True, help="takes the results")
    add("--num_imgs", type=values.count, default=math.inf, help="the most pairs to take of each folder; inf = all")
    add("--use_AB", action="store_true", help="join 1_A.jpg with 1_B.jpg, to 1.jpg")
    add("--no_multiprocessing", action="store_true", help="one pair after the other, not several at a time")
    args = parser.parse_args(argv)
    threads = 1 if args.no_multiprocessing else None
    count = combine(args.fold_A, args.fold_B, args.fold_AB, num_imgs=args.num_imgs, use_AB=args.use_AB, threads=threads)
    print(f"{count} pairs are in {args.fold_AB}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
