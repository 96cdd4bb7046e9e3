"""Trained generators as files for other programs: ONNX, torch.export, TorchScript and safetensors."""

import importlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.portable import Portable
from models.weights import in_dtype, parse_notes, safetensors_notes, write_safetensors
from util.files import atomic

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".ts", "safetensors": ".safetensors"}
DTYPES = {"onnx": ("fp32", "fp16", "int8"), "safetensors": ("fp32", "fp16")}  # the other formats have fp32 alone
OPSET = 18  # of ONNX


def export(
    net: Portable,
    path: Path,
    format: str,
    notes: Mapping[str, Any],
    *,
    dtype: str = "fp32",
    calibration: Iterable[Tensor] = (),
) -> None:
    """Write a generator to a file, which replaces `path` when it is complete.

    Files make images (B, C, H, W) of float32 in [-1, 1], of images like them or of noise (B, z_dim + n_classes). Batch
    and sizes of inputs are dynamic. Files of torch_export check that the sides of images are larger than the stride.

    Args:
        net: as `make_portable` returns it, on the CPU.
        format: a key of SUFFIXES.
        notes: what the file says about itself, see `read_notes`.
        dtype: of weights and layers; one of DTYPES.
        calibration: images (1, C, H, W) in [-1, 1] whose ranges of activations int8 takes.

    Raises:
        ValueError: the format has no such dtype, there are no images for int8, or a package is not installed.
    """
    known = DTYPES.get(format, ("fp32",))
    if dtype not in known:
        raise ValueError(f"dtype={dtype} does not suit format={format}: choose from {', '.join(known)}")
    text = json.dumps(dict(notes))
    with atomic(path) as draft, torch.no_grad():
        if format == "onnx":
            _export_onnx(net, draft, text, dtype, calibration)
        elif format == "torch_export":
            torch.export.save(_capture(net), draft, extra_files={"notes.json": text})
        elif format == "torchscript":
            with torchscript():
                torch.jit.save(torch.jit.trace(net, (net.example(),)), str(draft), _extra_files={"notes.json": text})
        else:
            weights = net.net.state_dict()
            write_safetensors(in_dtype(weights, torch.float16) if dtype == "fp16" else weights, draft, notes=text)


def _capture(net: Portable) -> torch.export.ExportedProgram:
    """Record what a network does for inputs of all its sizes. PyTorch proves that it is the same."""
    sizes = {dim: torch.export.Dim(name, min=least) for dim, (name, least) in net.dynamic_dims().items()}
    return torch.export.export(net, (net.example(),), dynamic_shapes=(sizes,), strict=False)


def _export_onnx(net: Portable, path: Path, notes: str, dtype: str, calibration: Iterable[Tensor]) -> None:
    onnx = import_extra("onnx", "export")
    import_extra("onnxscript", "export")
    if dtype == "fp16":
        net.dtype = torch.float16
        net.net.half()
    program = torch.onnx.export(
        _capture(net), input_names=[net.input_name], output_names=[net.output_name], opset_version=OPSET,
        dynamo=True, optimize=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    if dtype == "int8":
        model = _quantized(model, calibration)
    onnx.helper.set_model_props(model, {"notes": notes})
    onnx.save(model, path)


@contextmanager
def torchscript() -> Iterator[None]:
    """Leave out the warnings that this format is known for.

    It is deprecated, and tracers warn of each size in the code; the check of a written file runs it with others.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.")
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def _quantized(model: Any, calibration: Iterable[Tensor]) -> Any:
    """An ONNX model whose convolutions are quantized to int8, by the ranges of activations for `calibration`."""
    onnx, quantization = import_extra("onnx", "export"), import_extra("onnxruntime.quantization", "export")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.images = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model, str(made), Reader(), op_types_to_quantize=["Conv"], per_channel=True,
            extra_options={"DedicatedQDQPair": True},
        )  # fmt: skip
        return onnx.load(made)


def import_extra(name: str, extra: str) -> Any:
    """An optional package. ValueError with the command that installs it if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f'{name} is not installed: pip install ".[{extra}]"') from error


def _load_onnx(path: Path) -> Any:
    onnx = import_extra("onnx", "export")
    try:
        return onnx.load(path)
    except OSError:
        raise
    except Exception as error:  # of protobuf, which onnx does not wrap
        raise ValueError(f"{path} is not an ONNX file: {error}") from error


def read_notes(path: Path) -> dict[str, Any]:
    """What an exported file says about itself.

    Returns:
        Of a generator that translates images: network, its flags; input_nc, output_nc; stride, of which sides are
        padded to a multiple; image_range, the values of a tensor; value_range, the values of files with more than 8
        bits that became -1 and 1, if it was given in training; output_range and output_format, the same and the pixels
        of results; domains, the letters of both; classes, those of label maps that it takes; slice_axis, of volumes;
        source, dtype, and norm_statistics: of the batch, or running.
        Of a generator of sagan: network, its flags; z_dim, of the noise; classes, whose weights follow the noise;
        image_size; output_nc, image_range, output_format, source and dtype, as above.

    Raises:
        ValueError: the file was not made by `export`.
    """
    suffix, files = path.suffix, {"notes.json": ""}
    if suffix == ".onnx":
        files |= {f"{prop.key}.json": prop.value for prop in _load_onnx(path).metadata_props}
    elif suffix == ".pt2":
        torch.export.load(path, extra_files=files)
    elif suffix == ".ts":
        with torchscript():
            torch.jit.load(str(path), _extra_files=files)
    else:
        files["notes.json"] = safetensors_notes(path)
    if notes := parse_notes(files["notes.json"]):
        return notes
    raise ValueError(f"{path} was not written by scripts.export: it says nothing about itself")


class OnnxNetwork(nn.Module):
    """An ONNX file of `export` as a network, run by onnxruntime: images or noise -> images (B, C, H, W).

    Threads may share an instance.

    Args:
        path: the file.
        device: cpu or cuda, which needs onnxruntime-gpu.

    Raises:
        ValueError: the file is damaged, or onnxruntime is not installed or has no such device.
    """

    def __init__(self, path: Path, device: torch.device | None = None):
        super().__init__()
        runtime = import_extra("onnxruntime", "export")
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(
            device.type if device else "cpu"
        )
        if provider not in runtime.get_available_providers():
            raise ValueError(f"onnxruntime cannot run on {device}: choose cpu")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # onnxruntime raises a type of its own for each kind of damage
            raise ValueError(f"{path} is not an ONNX file that onnxruntime can run: {error}") from error
        self.input_name = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C_in, H, W), or noise (B, z_dim + n_classes) -> (B, C_out, H, W), on the CPU."""
        (made,) = self.session.run(None, {self.input_name: x.cpu().numpy()})
        return torch.from_numpy(made)


def load_exported(path: Path, format: str) -> Callable[[Tensor], Tensor]:
    """A written file as a function from its input to images (B, C, H, W), to check it."""
    if format == "onnx":
        return OnnxNetwork(path)
    if format == "torchscript":
        with torchscript():
            return torch.jit.load(str(path))
    return torch.export.load(path).module()


def random_images(channels: int, *, stride: int, count: int = 4) -> list[Tensor]:
    """Images of random sizes and batches for a check, (B, channels, H, W) in [-1, 1], with sides above the stride."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(count):
        batch, *sides = (int(n) for n in torch.randint(1, 97, (3,), generator=generator))
        sides = [max(side, 8) + stride for side in sides]
        images.append(torch.rand(batch % 2 + 1, channels, *sides, generator=generator) * 2 - 1)
    return images
