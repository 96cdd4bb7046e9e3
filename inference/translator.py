"""Trained models, ready for pictures of any size: for test.py, scripts.translate and, as Translator, for Python."""

from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.image_file import on_white
from data.transforms import Transform
from inference.trained import find_source, load_generator
from options import values
from util.images import to_image

Picture = TypeVar("Picture", Image.Image, np.ndarray, Tensor)


def as_tensor(image: Image.Image | Tensor, *, channels: int) -> Tensor:
    """An 8-bit image, or (C, H, W) in [-1, 1], as test.py gives it to the network: (channels, H, W) in [-1, 1]."""
    return Transform(preprocess="none", flip=False, channels=channels, multiple=1)(image)


class Translator:
    """A trained generator as a function from picture to picture; it does what test.py does.

    Args:
        net: takes (B, input_nc, H, W) in [-1, 1].
        input_nc: channels of its input.
        value_range: the values of files with more than 8 bits that were -1 and 1 in training, for who reads such files
            to make tensors; None: as their type tells.
    """

    def __init__(self, net: nn.Module, *, input_nc: int, value_range: tuple[float, float] | None = None):
        self.net, self.input_nc, self.value_range = net, input_nc, value_range

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        direction: str | None = None,
        epoch: str | int = "latest",
        ema: bool = True,
        evaluate: bool = False,
        device: str | torch.device | None = None,
    ) -> Self:
        """Load the generator of a run.

        Args:
            source: folder of the run, such as checkpoints/NAME, or one .pth file, whose flags are then inferred.
            direction: AtoB or BtoA; None takes the one it was trained in.
            epoch: which weights of the run: latest, or the number of an epoch.
            ema: prefer averaged weights, if the run kept them.
            evaluate: running statistics in batch norm and no dropout, as --eval of test.py.
            device: where to compute; None takes a GPU if there is one.

        Raises:
            ValueError: there is no such run or file, or it has no generator for this direction.
        """
        source = Path(source)
        source = source.absolute() if source.is_file() else source.resolve()
        for what, name in (("source", source.stem if source.is_file() else source.name), ("epoch", str(epoch))):
            if not values.is_plain_name(name):
                raise ValueError(f"{what} {name!r} is not a plain name")
        if direction not in (None, "AtoB", "BtoA"):
            raise ValueError(f"direction {direction!r}: choose AtoB or BtoA")
        if source.is_file():
            found = find_source(source.parent, "latest", file=source)
        else:
            found = find_source(source, str(epoch))
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        net, input_nc = load_generator(
            found, torch.device(device or "cpu"), direction=direction, ema=ema, evaluate=evaluate
        )
        return cls(net, input_nc=input_nc, value_range=values.bounds(found.flags.get("value_range", "")))

    @overload
    def __call__(self, images: Picture) -> Picture: ...

    @overload
    def __call__(self, images: list[Picture]) -> list[Picture]: ...

    def __call__(self, images: Any) -> Any:
        """Translate a picture, or each of a list; the result is of the same kind and size.

        Args:
            images: PIL images of 8 bits a channel, whose transparent parts are put on white; uint8 arrays (H, W, C), or
                (H, W) for one channel; or tensors (C, H, W) or (B, C, H, W) in [-1, 1]. Batch norm sees the pictures of
                a tensor's batch together.

        Raises:
            ValueError: another kind, shape, depth or range of values.
        """
        if isinstance(images, list | tuple):
            return [self(image) for image in images]
        if isinstance(images, Image.Image):
            made = self._run(self._from_image(images))
            if made.shape[1] not in (1, 3):
                raise ValueError(f"the generator makes {made.shape[1]} channels, which are no picture: pass a tensor")
            return to_image(made)
        if isinstance(images, np.ndarray):
            result = self._run(self._from_array(images))[0].add(1).mul(127.5).round().clamp(0, 255).byte()
            array = result.permute(1, 2, 0).cpu().numpy()
            return array[..., 0] if images.ndim == 2 and array.shape[2] == 1 else array
        if isinstance(images, Tensor):
            if images.ndim not in (3, 4) or not images.is_floating_point() or not images.abs().amax() <= 1.001:
                raise ValueError(
                    "a tensor holds pictures (C, H, W) or (B, C, H, W) as floating-point values in [-1, 1]"
                )
            result = self._run(images if images.ndim == 4 else images[None]).to(images.device)
            return result if images.ndim == 4 else result[0]
        raise ValueError(f"pictures are PIL images, arrays or tensors, or a list of them, not {type(images).__name__}")

    def _run(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], from any device, through the network."""
        if x.shape[1] != self.input_nc:
            raise ValueError(f"the generator takes {self.input_nc} channels, the picture has {x.shape[1]}")
        with torch.no_grad():
            return self.net(x.to(next(self.net.parameters()).device, torch.float32))

    def _from_image(self, image: Image.Image) -> Tensor:
        if self.input_nc not in (1, 3) or image.mode.startswith(("I", "F")):
            raise ValueError(
                f"a picture of mode {image.mode} cannot be 8 bits in {self.input_nc} channels: pass a tensor in [-1, 1]"
            )
        return as_tensor(on_white(image), channels=self.input_nc)[None]

    def _from_array(self, array: np.ndarray) -> Tensor:
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ValueError(f"an array is (H, W, C) or (H, W) of uint8, not {array.shape} of {array.dtype}")
        x = torch.from_numpy(array.copy() if array.ndim == 3 else array[..., None].copy())
        return x.permute(2, 0, 1)[None] / 255 * 2 - 1
