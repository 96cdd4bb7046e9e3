"""Features of images from frozen networks, for the metrics that compare sets of images."""

import hashlib
import io
import logging
import os
import pickle
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from data.scans import file_of, is_slice
from models.networks.efficientnet import efficientnet_lite, weights_file
from util.checkpoint_files import read_tensors
from util.errors import RemediedError
from util.files import atomic

log = logging.getLogger(__name__)

BATCH = 16  # images at a time


@dataclass(frozen=True)
class Extractor:
    """Turns images into vectors of features.

    Attributes:
        name: in words, to stand beside every figure.
        key: digest of the weights.
        net: images (B, 3, H, W) of uint8 -> features (B, D) of float32.
        device: of the network.
    """

    name: str
    key: str
    net: Callable[[Tensor], Tensor]
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], gray or color, rounded to 8 bits -> features (B, D) on the CPU.

        Raises:
            ValueError: the images have neither 1 nor 3 channels.
        """
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"features are those of gray or color images, and these have {images.shape[1]} channels: compare them "
                "with l1, psnr, ssim or cycle"
            )
        pixels = images.to(self.device).float().add(1).mul(127.5).round().clamp(0, 255).byte()
        with torch.autocast(self.device.type, enabled=False):
            return torch.cat([self.net(part.expand(-1, 3, -1, -1)).float().cpu() for part in pixels.split(BATCH)])


def lite_extractor(size: int, device: torch.device) -> Extractor:
    """EfficientNet-Lite0 or Lite2 on ImageNet: 1280 features of images resized to the side that it was trained on.

    Raises:
        ValueError: the package of its weights is not installed.
    """
    net = efficientnet_lite(size).to(device)

    def features(pixels: Tensor) -> Tensor:
        x = F.interpolate(pixels.float(), (net.side, net.side), mode="bilinear", antialias=True)
        return net.vector(x / 127.5 - 1)

    return Extractor(f"EfficientNet-Lite{size} features", file_digest(weights_file(size)), features, device)


def inception_extractor(path: Path, device: torch.device) -> Extractor:
    """Inception v3 of the published FID and KID, through the extractor of torch-fidelity.

    Args:
        path: the weights, the file that torch-fidelity publishes.

    Raises:
        ValueError: the file is missing or has other content, or torch-fidelity is not installed.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # optional
    except ImportError as error:
        raise RemediedError(
            'metrics_weights needs the package torch-fidelity. Install it: pip install ".[metrics]".'
        ) from error
    read_tensors(path)  # refuses anything but plain tensors: torch-fidelity would execute what is in the file
    try:
        with torch.random.fork_rng([]):  # it starts with random weights
            net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise RemediedError(
            f"metrics_weights={path}: this is not the file weights-inception-2015-12-05-6726825d.pth that "
            f"torch-fidelity publishes ({str(error).splitlines()[0]})."
        ) from error
    net.to(device)
    return Extractor("Inception features", file_digest(path), lambda pixels: net(pixels)[0], device)


# --metrics_features -> extractor; --metrics_weights replaces it
EXTRACTORS: dict[str, Callable[[torch.device], Extractor]] = {
    "lite0": lambda device: lite_extractor(0, device),
    "lite2": lambda device: lite_extractor(2, device),
}


def create_extractor(features: str, weights: str, device: torch.device) -> Extractor:
    """The extractor of `metrics_weights`, if there is such a file, or else of `metrics_features`.

    Args:
        features: lite0 or lite2.
        weights: file of Inception weights; empty for none.
        device: of the network.

    Raises:
        ValueError: a package is not installed, or the file has other content.
    """
    return inception_extractor(Path(weights), device) if weights else EXTRACTORS[features](device)


def cached(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """The features of `key` from the cache, or else what `compute` returns, which goes there."""
    features = read_cache(key)
    if features is None:
        features = compute()
        write_cache(key, features)
    return features


def file_digest(path: Path) -> str:
    """The SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_key(extractor: Extractor, paths: Collection[Path], settings: Sequence[object] = ()) -> str:
    """A digest of everything that features depend on: the extractor, the content of the files, and `settings`."""
    digests = {file: file_digest(file) for file in {file_of(path) for path in paths}}
    slices = (f"{digests[file_of(path)]}{path.name if is_slice(path) else ''}" for path in paths)
    parts = [extractor.key, repr(settings), *slices]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def cache_file(key: str) -> Path:
    """Where the features of `key` are cached, in the user's folder for caches."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "attention-cyclegan" / "features" / f"{key[:32]}.pth"


def read_cache(key: str) -> Tensor | None:
    """The cached features of `key`, (N, D); None if there are none, or if their file is damaged."""
    path = cache_file(key)
    if not path.is_file():
        return None
    try:
        return read_tensors(path)["features"]
    except ValueError as error:
        log.warning("features of real images are computed again: %s", error)
        return None


def write_cache(key: str, features: Tensor) -> None:
    """Cache the features of `key`. A folder that is not writable costs time alone, so it is only a warning."""
    path, buffer = cache_file(key), io.BytesIO()
    torch.save({"features": features}, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as draft:
            draft.write_bytes(buffer.getbuffer())
    except OSError as error:
        log.warning("features of real images are computed again next time: cannot write %s (%s)", path, error)
