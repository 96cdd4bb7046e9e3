"""`Translator`, which applies a trained generator to images of any size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.image_file import ImageReader, on_white
from data.scans import LAST
from data.transforms import Transform
from inference.export import OnnxNetwork, read_notes
from inference.hub import local_file
from inference.tiles import OVERLAP, Tiled
from inference.trained import Source, find_source, from_notes, load_generator
from options import values
from util.images import WITH_ALPHA, PixelFormat, check_finite, is_viewable, to_image, to_label_map
from util.label_maps import Palette, pixels

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
        value_range: the values that became -1 and 1 in training, for inputs with more than 8 bits; None for the default
            of their dtype.
        output_format: of results; None for the format of the input.
        output_range: the values that -1 and 1 stand for in results with more than 8 bits, if there is no
            `output_format`; None for those of the input.
        domains: letters of the domains of inputs and results.
        classes: of inputs that are label maps, see PixelFormat; empty for all other images.
        slice_axis: axis of volumes along which slices were images in training.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        input_nc: int,
        value_range: tuple[float, float] | None = None,
        output_format: PixelFormat | None = None,
        output_range: tuple[float, float] | None = None,
        domains: tuple[str, str] = ("A", "B"),
        classes: Sequence[str] = (),
        slice_axis: int = LAST,
    ):
        self.net, self.input_nc, self.value_range, self.classes = net, input_nc, value_range, tuple(classes)
        self.slice_axis = slice_axis
        self.output_format, self.output_range, self.domains = output_format, output_range, domains

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
                an ONNX file of scripts.export, which onnxruntime runs; or a file on the Hugging Face Hub, see
                `inference.hub.local_file`.
            direction: AtoB or BtoA; None takes the direction of training, or of a file.
            epoch: of a run: latest, best or the number of an epoch.
            ema: of a run: prefer averaged weights.
            evaluate: use running statistics in batch norm and no dropout, as test.py --eval does.
            device: of the generator; None takes a GPU if there is one.
            tile: run in tiles of so many pixels a side, with the same result, in bounded memory; None runs images
                whole.
            tile_overlap: pixels around a tile that it may compute again, see `inference.tiles`.

        Raises:
            ValueError: there is no such run or file, it has no generator for this direction, or it does not run in
                tiles.
        """
        source = local_file(source)
        if source.suffix == ".onnx":
            if (direction, epoch, ema, evaluate, tile) != (None, "latest", True, False, None):
                raise ValueError(f"{source} is one exported generator, which runs whole: pass the device alone")
            notes = read_notes(source)
            flags, formats = from_notes(notes)
            found = Source(source.parent, "", source, flags, {}, formats)
            found.check_translates()
            net: nn.Module = OnnxNetwork(source, torch.device(device or "cpu"))
            return cls._of(found, net, notes["input_nc"])
        source = source.absolute() if source.is_file() else source.resolve()
        for what, name in (("source", source.stem if source.is_file() else source.name), ("epoch", str(epoch))):
            if not values.is_plain_name(name):
                raise ValueError(f"{what} {name!r} is not a plain name")
        if direction not in (None, "AtoB", "BtoA"):
            raise ValueError(f"direction {direction!r}: choose AtoB or BtoA")
        if source.is_file():
            if epoch != "latest" or not ema:
                raise ValueError(f"epoch and ema choose among the weights of a run, but {source} is one file")
            found = find_source(source.parent, "latest", file=source)
            if direction not in (None, own := "to".join(found.domains())):
                raise ValueError(f"direction {direction}: {source} is one generator, of {own}")
        else:
            found = find_source(source, str(epoch))
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        net, input_nc = load_generator(
            found, torch.device(device or "cpu"), direction=direction, ema=ema, evaluate=evaluate
        )
        if tile:
            net = Tiled(net, tile=tile, overlap=tile_overlap)
        return cls._of(found, net, input_nc, direction)

    @classmethod
    def _of(cls, source: Source, net: nn.Module, input_nc: int, direction: str | None = None) -> Self:
        """A network with the ranges and formats of `source`, in `direction` (None: as trained)."""
        first, second = source.domains(direction)
        return cls(
            net,
            input_nc=input_nc,
            value_range=source.value_range(first),
            output_format=source.formats.get(second),
            output_range=source.value_range(second),
            domains=(first, second),
            classes=source.formats[first].classes if first in source.formats else (),
            slice_axis=source.flags.get("slice_axis", LAST),
        )

    @property
    def reader(self) -> ImageReader:
        """The reader of files to translate."""
        return ImageReader(channels=self.input_nc, value_range=self.value_range, classes=self.classes)

    @property
    def has_labels(self) -> bool:
        """Whether inputs or results are label maps."""
        return bool(self.classes or (self.output_format and self.output_format.classes))

    def result_format(self, source: PixelFormat) -> PixelFormat:
        """The format of a result: that of the target domain or, if it is not known, of the input, `source`."""
        return source.of_result(self.output_format, self.output_range)

    @overload
    def __call__(self, images: AnyImage) -> AnyImage: ...

    @overload
    def __call__(self, images: list[AnyImage]) -> list[AnyImage]: ...

    def __call__(self, images: Any) -> Any:
        """Translate an image, or each image of a list. The result has the type and size of the input.

        Results have the format of the target domain, which a run saves, such as int16; without a run, that of the
        input. Tensors stay in [-1, 1].

        Args:
            images: a PIL image, whose transparent pixels are composited on white unless the generator takes opacity
                (RGBA, LA); an array (H, W, C), or (H, W) for one channel, of integers or floats; a floating-point
                tensor (C, H, W) or (B, C, H, W) in [-1, 1]; or a list of these. Images and arrays hold the values or
                colors of classes if the generator takes label maps, tensors a plane for each. Batch norm computes its
                statistics over all images of a tensor.

        Raises:
            ValueError: the type, shape, dtype or range of values is not supported, or the result is not finite.
        """
        if isinstance(images, list | tuple):
            return [self(image) for image in images]
        if isinstance(images, Image.Image):
            x, fmt = self._from_image(images)
            made, fmt = self._run(x[None])[0], self.result_format(fmt)
            if fmt.classes:
                return to_label_map(made, fmt)
            if is_viewable(made, fmt):
                return to_image(made, alpha=fmt.alpha)
            if len(made) == 1 and fmt.dtype in ("uint16", "int32", "float32"):
                return Image.fromarray(fmt.to_array(made)[..., 0])
            raise ValueError(
                f"the generator makes {len(made)} channels of {fmt.dtype}, which no PIL image holds: pass an array, or "
                "a tensor"
            )
        if isinstance(images, np.ndarray):
            x, fmt = self._from_array(images)
            array = self.result_format(fmt).to_array(self._run(x[None])[0])
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
            result = self.net(x.to(next(self.net.parameters(), x.cpu()).device, torch.float32))
        check_finite(result)
        return result

    def _from_image(self, image: Image.Image) -> tuple[Tensor, PixelFormat]:
        """The tensor (input_nc, H, W) of an image, and its format."""
        if self.classes:
            return self._from_label_map(*pixels(image))
        if image.mode.startswith(("I", "F")):
            return self._from_array(np.asarray(image))
        if self.input_nc in WITH_ALPHA and image.has_transparency_data:
            bands = np.asarray(image.convert("RGBA" if self.input_nc == 4 else "LA"))
            return self._from_array(bands, alpha=True)
        if self.input_nc not in (1, 3):
            raise ValueError(
                f"an image of mode {image.mode} does not convert to {self.input_nc} channels of 8 bits: pass an array, "
                "or a tensor in [-1, 1]"
            )
        return as_tensor(on_white(image), channels=self.input_nc), PixelFormat()

    def _from_array(self, array: np.ndarray, *, alpha: bool = False) -> tuple[Tensor, PixelFormat]:
        """The tensor (C, H, W) of an array, and its format."""
        if array.dtype.kind not in "uif" or array.ndim not in (2, 3):
            raise ValueError(
                f"an array has to be (H, W, C) or (H, W) of integers or floats, not {array.shape} of {array.dtype}"
            )
        array = array if array.ndim == 3 else array[..., None]
        if self.classes:
            return self._from_label_map(array)
        try:
            fmt = PixelFormat.of(array, self.value_range, alpha=alpha)
        except ValueError as error:
            raise ValueError(f"the array {error}") from error
        if fmt.is_8bit:
            return torch.from_numpy(array.copy()).permute(2, 0, 1) / 255 * 2 - 1, fmt
        return fmt.to_tensor(array), fmt

    def _from_label_map(self, array: np.ndarray, palette: Palette | None = None) -> tuple[Tensor, PixelFormat]:
        """The tensor (classes, H, W) of a label map, and its format."""
        fmt = PixelFormat(classes=self.classes)
        try:
            return fmt.to_tensor(array, palette), fmt
        except ValueError as error:
            raise ValueError(f"the label map {error}") from error
