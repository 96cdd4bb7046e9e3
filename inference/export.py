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
from torch.nn import functional as F

from models.networks import layers, resample
from models.networks.any_size import AnySize
from models.networks.attention import SelfAttention2d, attend_plain, tokens
from models.networks.layers import BATCH_NORMS, remove_spectral_norm
from models.weights import in_dtype, safetensors_notes, write_safetensors
from util.files import atomic

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".ts", "safetensors": ".safetensors"}
DTYPES = {"onnx": ("fp32", "fp16", "int8"), "safetensors": ("fp32", "fp16")}  # the other formats have fp32 alone
OPSET = 18  # of ONNX


# Layers that run on every size and device alike, and contain nothing that a tracer would take as constant.


class _Downsample(resample.Downsample):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt.to(x.dtype), stride=2, groups=len(self.filt))


class _Upsample(resample.Upsample):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class _ResizeConv2d(resample.ResizeConv2d):
    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(F.interpolate(x, scale_factor=2.0, mode="nearest"), (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.weight, self.bias)


class _Attention(SelfAttention2d):
    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (tokens(conv(x)) for conv in (self.query_conv, self.key_conv, self.value_conv))
        # contiguous, or torch.export asks for a proof about strides that it cannot find
        out = attend_plain(query, key, value).transpose(1, 2).contiguous()
        return x + self.gamma * out.unflatten(2, x.shape[2:])


class _BatchStatistics(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return (x - mean) * scale + self.bias[:, None, None]


PORTABLE: dict[type[nn.Module], type[nn.Module]] = {
    layers.NarrowConv2d: nn.Conv2d,
    layers.ReflectionPad2d: nn.ReflectionPad2d,
    layers.InstanceNorm2d: nn.InstanceNorm2d,
    resample.Downsample: _Downsample,
    resample.Upsample: _Upsample,
    resample.ResizeConv2d: _ResizeConv2d,
    SelfAttention2d: _Attention,
}


class Padded(nn.Module):
    """AnySize by gathers alone, which tracers follow for every size: they have no branches and check no sizes."""

    def __init__(self, net: nn.Module, stride: int):
        super().__init__()
        self.net, self.stride, self.dtype = net, stride, torch.float32

    def forward(self, image: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W) in [-1, 1]."""
        x = image
        for dim in (2, 3):
            side = image.shape[dim]
            cells = (side + self.stride - 1) // self.stride
            # a tensor, since the ONNX exporter does not translate the remainder by a size
            period = torch.full((1,), 2 * (side - 1), device=image.device)
            places = torch.arange(cells * self.stride, device=image.device).remainder(period)
            x = x.index_select(dim, torch.minimum(places, period - places))
        made = self.net(x.to(self.dtype)).to(image.dtype)
        for dim in (2, 3):
            made = made.index_select(dim, torch.arange(image.shape[dim], device=image.device))
        return made


def make_portable(net: AnySize) -> Padded:
    """Change the layers of a generator, in place, to ones that can be exported, and return it for images of any size.

    Weights of spectral norm become plain. Batch norm in training mode keeps using the statistics of the batch; dropout
    is off.

    Args:
        net: as `inference.trained.prepare` returns it.
    """
    inner = net.net
    remove_spectral_norm(inner)
    for module in list(inner.modules()):
        if isinstance(module, BATCH_NORMS):
            if module.training:
                module.__class__ = _BatchStatistics
        elif type(module) in PORTABLE:
            module.__class__ = PORTABLE[type(module)]  # in place: a U-Net refers to its attention blocks twice
    inner.to(memory_format=torch.contiguous_format)
    assert isinstance(inner.stride, int)
    return Padded(inner, inner.stride).eval()


def export(
    net: Padded,
    path: Path,
    format: str,
    notes: Mapping[str, Any],
    *,
    dtype: str = "fp32",
    calibration: Iterable[Tensor] = (),
) -> None:
    """Write a generator to a file, which replaces `path` when it is complete.

    Batch and size are dynamic. Files take and make images (B, C, H, W) of float32 in [-1, 1]. Those of torch_export
    check that the sides of images are larger than the stride.

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
    text, stride = json.dumps(dict(notes)), net.stride
    example = torch.zeros(2, int(notes["input_nc"]), 2 * stride, 3 * stride)
    with atomic(path) as draft, torch.no_grad():
        if format == "onnx":
            _export_onnx(net, example, draft, text, dtype, calibration)
        elif format == "torch_export":
            torch.export.save(_capture(net, example), draft, extra_files={"notes.json": text})
        elif format == "torchscript":
            with torchscript():
                torch.jit.save(torch.jit.trace(net, (example,)), str(draft), _extra_files={"notes.json": text})
        else:
            weights = net.net.state_dict()
            write_safetensors(in_dtype(weights, torch.float16) if dtype == "fp16" else weights, draft, notes=text)


def _capture(net: Padded, example: Tensor) -> torch.export.ExportedProgram:
    """Record what a network does for every batch and all sides above the stride. PyTorch proves that it is the same."""
    sizes = {dim: torch.export.Dim(name, min=net.stride + 1) for dim, name in ((2, "height"), (3, "width"))}
    sizes[0] = torch.export.Dim("batch")
    return torch.export.export(net, (example,), dynamic_shapes=(sizes,), strict=False)


def _export_onnx(
    net: Padded, example: Tensor, path: Path, notes: str, dtype: str, calibration: Iterable[Tensor]
) -> None:
    onnx = import_extra("onnx", "export")
    import_extra("onnxscript", "export")
    if dtype == "fp16":
        net.dtype = torch.float16
        net.net.half()
    program = torch.onnx.export(
        _capture(net, example), input_names=["image"], output_names=["result"], opset_version=OPSET, dynamo=True,
        optimize=True, verbose=False,
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
        network, the flags of the generator; input_nc, output_nc; stride, of which sides are padded to a multiple;
        image_range, the values of a tensor; value_range, the values of files with more than 8 bits that became -1 and
        1, if it was given in training; output_range and output_format, the same and the pixels of results; domains, the
        letters of both; classes, those of label maps that it takes; slice_axis, of volumes; source, dtype, and
        norm_statistics: of the batch, or running. A generator of sagan has source, network and output_format alone.

    Raises:
        ValueError: the file was not made by `export`.
    """
    suffix = path.suffix
    try:
        if suffix == ".onnx":
            return json.loads({prop.key: prop.value for prop in _load_onnx(path).metadata_props}["notes"])
        files = {"notes.json": ""}
        if suffix == ".pt2":
            torch.export.load(path, extra_files=files)
        elif suffix == ".ts":
            with torchscript():
                torch.jit.load(str(path), _extra_files=files)
        else:
            files["notes.json"] = safetensors_notes(path)
        return json.loads(files["notes.json"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} was not written by scripts.export: it says nothing about itself") from error


class OnnxNetwork(nn.Module):
    """An ONNX file of `export` as a network (B, C_in, H, W) -> (B, C_out, H, W), run by onnxruntime.

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

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W), on the CPU."""
        (made,) = self.session.run(None, {"image": x.cpu().numpy()})
        return torch.from_numpy(made)


def load_exported(path: Path, format: str) -> Callable[[Tensor], Tensor]:
    """A written file as a function (B, C_in, H, W) -> (B, C_out, H, W), to check it."""
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
