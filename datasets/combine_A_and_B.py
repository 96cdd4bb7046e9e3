"""Put pairs of images side by side, for --dataset_mode aligned.

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
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Python looks in the folder of the script only

from data.arrays import array_kind, read_array
from data.image_file import read_rgb
from data.image_folder import WRITABLE, DataError, list_images, nearest_folder, tree
from options import values
from options.parser import script_parser
from util.command import run_command
from util.images import write_array


def combine(
    fold_A: Path,
    fold_B: Path,
    fold_AB: Path,
    *,
    num_imgs: float = math.inf,
    use_AB: bool = False,
    threads: int | None = None,
) -> int:
    """Join the images of `fold_A`, on the left, with those of the same name in `fold_B`, and write them to `fold_AB`.

    Keeps subfolders such as train and test. Skips images of A without a partner and prints their number. Gray and color
    images of 8 bits become RGB with transparent parts white; .jpg files have quality 95 and 4:4:4. Files of 16 bits,
    floats or other channels (PNG, TIFF, .npy) keep their values and channels.

    Args:
        num_imgs: the maximum number of pairs of each subfolder of `fold_A`, in the order of their names.
        use_AB: join 1_A.jpg with 1_B.jpg, to 1.jpg.
        threads: pairs to work on at a time; None chooses by the number of cores.

    Returns:
        The number of pairs.

    Raises:
        DataError: a folder is missing, no image has a partner, or the two images of a pair differ in size or channels.
        MissingLibrary: a file needs a library that is not installed.
        ValueError: the kind of file does not support the dtype or the number of channels.
    """
    if fold_AB.resolve() in (fold_A.resolve(), fold_B.resolve()):
        raise DataError(f"--fold_AB {fold_AB} would overwrite the images it is made from: choose another folder.")
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
    """The files of A and B of each pair, and the path of its result relative to `fold_AB`; see `combine`.

    a.jpg and a.png are a pair too, unless there is an a.jpg in B. It becomes a PNG.
    """
    pairs, alone = [], []
    paths_B = list_images(fold_B)
    partners = {str(path.with_suffix("")): path for path in paths_B} | {str(path): path for path in paths_B}
    taken: Counter[str] = Counter()
    for path_A in list_images(fold_A):
        name_A = path_A.relative_to(fold_A)
        if use_AB and "_A." not in name_A.name:
            continue
        name_B, name_AB = (
            name_A.with_name(name_A.name.replace("_A.", end)) if use_AB else name_A for end in ("_B.", ".")
        )
        path_B = partners.get(str(fold_B / name_B)) or partners.get(str((fold_B / name_B).with_suffix("")))
        if path_B is None:
            alone.append(f"{path_A} (no {fold_B / name_B})")
        elif taken[str(name_A.parent)] < num_imgs:
            taken[str(name_A.parent)] += 1
            lossless = path_A.suffix == path_B.suffix and path_A.suffix.lower() in WRITABLE
            pairs.append((path_A, path_B, name_AB if lossless else name_AB.with_suffix(".png")))
    sources: dict[Path, Path] = {}
    for path_A, _, name_AB in pairs:
        if (other := sources.setdefault(name_AB, path_A)) != path_A:
            raise DataError(f"{other} and {path_A} would both become {name_AB}: remove or rename one.")
    if not pairs:
        rule = "1_A.jpg belongs to 1_B.jpg" if use_AB else "both have the same name; with --use_AB, 1_A.jpg and 1_B.jpg"
        found = f": {alone[0]}" if alone else f".\nFound:\n{tree(fold_A)}"
        raise DataError(f"No image of --fold_A {fold_A} has a partner in --fold_B {fold_B} ({rule}){found}")
    if alone:
        print(f"skipped: {len(alone)} images without a partner, such as {alone[0]}", file=sys.stderr)
    return pairs


def join(path_A: Path, path_B: Path, path_AB: Path) -> None:
    """Write the images of two files side by side. A DataError names both if they differ in size or channels."""
    A, B = read(path_A), read(path_B)
    sizes, depths = [f"{x.shape[1]}x{x.shape[0]}" for x in (A, B)], [f"{x.shape[2]} x {x.dtype}" for x in (A, B)]
    for what, (of_A, of_B) in (("sizes", sizes), ("channels", depths)):
        if of_A != of_B:
            raise DataError(f"{path_A} and {path_B} have different {what}, {of_A} and {of_B}: a pair needs equal ones.")
    path_AB.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(np.concatenate([A, B], axis=1), path_AB)
    except OSError as error:
        raise DataError(f"Cannot write {path_AB} ({error}).") from error


def write(array: np.ndarray, path: Path) -> None:
    """Write (H, W, C) to a file of the kind that the suffix of `path` names; see `write_array`.

    Raises:
        ValueError: files of this suffix do not support the dtype or the number of channels.
        MissingLibrary: a PNG of several 16-bit channels needs a library that is not installed.
    """
    if path.suffix.lower() == ".png" and array.dtype == np.uint16 and 2 <= array.shape[2] <= 4:
        from data.decoders import encode_png  # slow to import

        encode_png(array, path)
    else:
        write_array(array, path)


def read(path: Path) -> np.ndarray:
    """The upright image in a file, (H, W, C): 8-bit images as RGB, others as they are."""
    try:
        return read_array(path) if array_kind(path) else np.asarray(read_rgb(path))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for a broken file
        raise DataError(f"Cannot read the image {path} ({error}): replace or remove this file.") from error


def main(argv: list[str] | None = None) -> int:
    """Parse and combine. Returns the exit status."""
    args = parse(argv)
    threads = 1 if args.no_multiprocessing else None
    count = combine(args.fold_A, args.fold_B, args.fold_AB, num_imgs=args.num_imgs, use_AB=args.use_AB, threads=threads)
    print(f"{count} pairs are in {args.fold_AB}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    example = "--fold_A mydata/trainA --fold_B mydata/trainB --fold_AB mydata/train"
    parser = script_parser("python datasets/combine_A_and_B.py", __doc__, example)
    add = parser.add_argument
    add("--fold_A", type=Path, required=True, help="folder of images for the left, or of folders such as train, test")
    add("--fold_B", type=Path, required=True, help="the same for the right, with the same file names")
    add("--fold_AB", type=Path, required=True, help="folder for the results")
    add("--num_imgs", type=values.count, default=math.inf, help="maximum number of pairs of each folder; inf = all")
    add("--use_AB", action="store_true", help="join 1_A.jpg with 1_B.jpg, to 1.jpg")
    add("--no_multiprocessing", action="store_true", help="join one pair at a time")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=()))
