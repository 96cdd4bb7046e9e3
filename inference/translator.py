"""`Translator`, which applies a trained generator to images of any size."""

from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.image_file import on_white
from data.transforms import Transform
from inference.export import OnnxNetwork, read_notes
from inference.tiles import OVERLAP, Tiled
from inference.trained import find_source, load_generator
from options import values
from util.images import to_image

AnyImage = TypeVar("AnyImage", Image.Image, np.ndarray, Tensor)


def as_tensor(image: Image.Image | Tensor, *, channels: int) -> Tensor:
    """Convert an 8-bit image, or (C, H, W) in [-1, 1], to (channels, H, W) in [-1, 1], as test.py does."""
    return Transform(preprocess="none", flip=False, channels=channels, multiple=1)(image)


class Translator:
    """A trained generator as a function from images to images of the same size.

    Results equal those of test.py. Threads may share an instance.

    Args:
        net: a network (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1] for any H and W.
        input_nc: channels of its input.
        value_range: the values that became -1 and 1 in training, for files with more than 8 bits; None for the default
            of their dtype.
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
        tile: int | None = None,
        tile_overlap: int = OVERLAP,
    ) -> Self:
        """Load the generator of a run.

        Args:
            source: the folder of the run, such as checkpoints/NAME; a file of a generator, whose flags are inferred;
                or an ONNX file of scripts.export, which onnxruntime runs.
            direction: AtoB or BtoA; None takes the direction of training.
            epoch: latest, best or the number of an epoch.
            ema: prefer averaged weights.
            evaluate: use running statistics in batch norm and no dropout, as test.py --eval does.
            device: of the generator; None takes a GPU if there is one.
            tile: run in tiles of so many pixels a side, with the same result, in bounded memory; None runs images
                whole.
            tile_overlap: pixels around a tile that it may compute again, see `inference.tiles`.

        Raises:
            ValueError: there is no such run or file, it has no generator for this direction, or it does not run in
                tiles.
        """
        source = Path(source)
        if source.suffix == ".onnx":
            if (direction, epoch, ema, evaluate, tile) != (None, "latest", True, False, None):
                raise ValueError(f"{source} is one exported generator, which runs whole: pass the device alone")
            notes = read_notes(source)
            net: nn.Module = OnnxNetwork(source, torch.device(device or "cpu"))
            return cls(net, input_nc=notes["input_nc"], value_range=notes["value_range"] and (*notes["value_range"],))
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
        if tile:
            net = Tiled(net, tile=tile, overlap=tile_overlap)
        return cls(net, input_nc=input_nc, value_range=values.bounds(found.flags.get("value_range", "")))

    @overload
    def __call__(self, images: AnyImage) -> AnyImage: ...

    @overload
    def __call__(self, images: list[AnyImage]) -> list[AnyImage]: ...

    def __call__(self, images: Any) -> Any:
        """Translate an image, or each image of a list. The result has the type and size of the input.

        Args:
            images: a PIL image with 8 bits per channel, whose transparent pixels are composited on white; a uint8 array
                (H, W, C), or (H, W) for one channel; a floating-point tensor (C, H, W) or (B, C, H, W) in [-1, 1]; or a
                list of these. Batch norm computes its statistics over all images of a tensor.

        Raises:
            ValueError: the type, shape, dtype or range of values is not supported.
        """
        if isinstance(images, list | tuple):
            return [self(image) for image in images]
        if isinstance(images, Image.Image):
            made = self._run(self._from_image(images))
            if made.shape[1] not in (1, 3):
                raise ValueError(f"the generator makes {made.shape[1]} channels, not an image: pass a tensor")
            return to_image(made)
        if isinstance(images, np.ndarray):
            result = self._run(self._from_array(images))[0].add(1).mul(127.5).round().clamp(0, 255).byte()
            array = result.permute(1, 2, 0).cpu().numpy()
            return array[..., 0] if images.ndim == 2 and array.shape[2] == 1 else array
        if isinstance(images, Tensor):
            if images.ndim not in (3, 4) or not images.is_floating_point() or not images.abs().amax() <= 1.001:
                raise ValueError("a tensor has to be (C, H, W) or (B, C, H, W) of floating-point values in [-1, 1]")
            result = self._run(images if images.ndim == 4 else images[None]).to(images.device)
            return result if images.ndim == 4 else result[0]
        raise ValueError(f"pass a PIL image, an array, a tensor or a list of them, not {type(images).__name__}")

    def _run(self, x: Tensor) -> Tensor:
        """Run the network on (B, C, H, W) in [-1, 1] from any device."""
        if x.shape[1] != self.input_nc:
            raise ValueError(f"the generator takes {self.input_nc} channels, but the image has {x.shape[1]}")
        with torch.no_grad():
            return self.net(x.to(next(self.net.parameters(), x.cpu()).device, torch.float32))

    def _from_image(self, image: Image.Image) -> Tensor:
        if self.input_nc not in (1, 3) or image.mode.startswith(("I", "F")):
            raise ValueError(
                f"an image of mode {image.mode} does not convert to {self.input_nc} channels of 8 bits: pass a tensor "
                "in [-1, 1]"
            )
        return as_tensor(on_white(image), channels=self.input_nc)[None]

    def _from_array(self, array: np.ndarray) -> Tensor:
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ValueError(f"an array has to be (H, W, C) or (H, W) of uint8, not {array.shape} of {array.dtype}")
        x = torch.from_numpy(array.copy() if array.ndim == 3 else array[..., None].copy())
        return x.permute(2, 0, 1)[None] / 255 * 2 - 1
