"""What is measured: each case makes a step, which the worker times."""

import atexit
import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks import plain
from data import create_dataset
from models import create_model
from models.networks.attention import attend
from options.train_options import TrainOptions
from training.compiling import compile_networks
from training.evaluation import with_averaged_weights
from training.features import create_extractor
from training.meter import Meter
from training.optimization import create_optimization
from training.setup import create_training
from util.device import keep_freed_memory
from util.paths import BUNDLED


@dataclass
class Case:
    """A step, and how many items (images) it works on."""

    step: Callable[[], object]
    items: int = 1
    prepare: Callable[[], str] = lambda: ""  # after the first step, whose operations are counted; what there is to say
    warm_up: int = 2  # steps after that


def plain_cycle_gan(*, size: int, blocks: int, batch: int = 1, ngf: int = 64, device: str = "cpu") -> Case:
    """The step of CycleGAN in plain PyTorch, `batch` images of each domain."""
    with torch.device(device):
        return Case(plain.cycle_gan_step(size, ngf, blocks, batch), items=batch)


def plain_sagan(*, batch: int, device: str = "cpu") -> Case:
    """The step of SAGAN in plain PyTorch, at 64 px."""
    with torch.device(device):
        return Case(plain.sagan_step(batch), items=batch)


def training(
    *,
    model: str,
    size: int,
    batch: int = 1,
    flags: Sequence[str] = (),
    compiled: bool = False,
    device: str = "cpu",
    channels_last: bool = False,
) -> Case:
    """A step of train.py with these flags, on random images.

    Args:
        channels_last: use this memory format whatever `util.device.tuning` chooses.
    """
    keep_freed_memory()
    sizes = ["--batch_size", str(batch), "--crop_size", str(size), "--load_size", str(size)]
    opt = TrainOptions().parse(["--model", model, *sizes, *flags, *["--compile"] * compiled])
    net, optimization, tuning = create_training(opt, torch.device(device), sizes=1)
    if channels_last:
        net.to(memory_format=torch.channels_last)
    images = {side: torch.rand(batch, 3, size, size) * 2 - 1 for side in "AB"}
    if tuning.pin_memory:
        images = {side: image.pin_memory() for side, image in images.items()}

    def prepare() -> str:
        if not compiled:
            return ""
        sizes = [(size, size)]
        return compile_networks(net, steps=1_000_000, sizes=sizes, batch_size=batch, mode=tuning.compile_mode)

    def step() -> None:
        optimization.begin_step(share=1.0, progress=0.0, images=batch, images_before=0)
        net.step(images)

    return Case(step, items=batch, prepare=prepare)


def measuring(*, model: str, size: int, batch: int = 8, flags: Sequence[str] = ()) -> Case:
    """What `--metrics kid` does with a batch of held-out images: translate them and compute features."""
    keep_freed_memory()
    opt = TrainOptions().parse(["--model", model, *flags])
    net = create_model(opt)
    net.prepare_training(opt, create_optimization(opt, net.device))
    meter = Meter(["kid"], create_extractor(opt.metrics_features, opt.metrics_weights, net.device))
    images = {side: torch.rand(batch, 3, size, size) * 2 - 1 for side in "AB"}

    def step() -> None:
        with with_averaged_weights(net), net.optimization.autocast():
            meter.measure(net.measured(images, cycle=False), [False] * batch)

    return Case(step, items=batch)


def plain_attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by two matrix products."""
    return torch.bmm(torch.softmax(torch.bmm(query, key.transpose(1, 2)), dim=-1), value)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def attention(
    *, positions: int, channels: int, ours: bool, precision: str = "fp32", times: int = 0, device: str = "cpu"
) -> Case:
    """Attention alone, forward and backward, so many times in a step; 0 = as long as for 4096 positions."""
    if ours:
        keep_freed_memory()
    dtype = DTYPES[precision]
    query, key, value = (
        torch.randn(1, positions, width, device=device, dtype=dtype, requires_grad=True)
        for width in (channels // 8, channels // 8, channels)
    )
    function = attend if ours else plain_attend
    times = times or max(4096**2 // positions**2, 1)  # a single time at 1024 positions is too short to tell sides apart

    def step() -> None:
        for _ in range(times):
            function(query, key, value).sum().backward()

    return Case(step, items=times, warm_up=2 if positions <= 4096 else 0)


def convolution(*, precision: str, channels: int = 256, side: int = 64, batch: int = 4, device: str = "cpu") -> Case:
    """One large convolution, the measure of what the machine can do: 256 channels, 64 x 64 positions, four images."""
    x, weight = (
        torch.randn(size, device=device, dtype=DTYPES[precision]).contiguous(memory_format=torch.channels_last)
        for size in ((batch, channels, side + 2, side + 2), (channels, channels, 3, 3))
    )
    return Case(lambda: F.conv2d(x, weight))


def make_dataset(*, count: int, size: int, suffix: str) -> Path:
    """A data root, removed at exit: `count` images of `size` px in each folder, made from bundled photographs."""
    root = tempfile.TemporaryDirectory()
    atexit.register(root.cleanup)
    side = 200  # px, of the photographs of 64 px: about as much detail as in larger ones
    files = sorted((BUNDLED / "chart" / "trainA").iterdir())
    photos = [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for file in files]
    for folder in ("trainA", "trainB", "testA", "testB"):
        Path(root.name, folder).mkdir()
        for number in range(count):
            image = Image.new("RGB", (size, size))
            places = [(x, y) for x in range(0, size, side) for y in range(0, size, side)]
            for place, photo in zip(places, itertools.cycle(photos[number:])):
                image.paste(photo, place)
            image.save(Path(root.name, folder, f"{number:04}{suffix}"), quality=90)
    return Path(root.name)


COUNT = 100  # images of each domain to load


class PlainImages(Dataset[Tensor]):
    """Images as Pillow and torchvision's first transforms load them; A and B in turn."""

    def __init__(self, folders: Iterable[Path], *changes: Callable):
        self.files = [file for folder in folders for file in sorted(folder.iterdir())]
        half = (0.5, 0.5, 0.5)
        self.transform = transforms.Compose([*changes, transforms.ToTensor(), transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def consume(loader: Iterable[object]) -> None:
    """Load everything once."""
    for _ in loader:
        pass


def plain_loading() -> Case:
    """JPEGs of 600 px, resized to 286, cropped to 256, flipped, by one worker."""
    root = make_dataset(count=COUNT, size=600, suffix=".jpg")
    resize = transforms.Resize((286, 286), transforms.InterpolationMode.BICUBIC)
    changes = (resize, transforms.RandomCrop(256), transforms.RandomHorizontalFlip())
    data = PlainImages((root / "trainA", root / "trainB"), *changes)
    loader = DataLoader(data, shuffle=True, num_workers=1, persistent_workers=True)
    return Case(lambda: consume(loader), items=2 * COUNT)


def loading(*, count: int = COUNT, size: int = 600, batch: int = 1, workers: int = 1, device: str = "cpu") -> Case:
    """The same by our loader."""
    keep_freed_memory()
    root = make_dataset(count=count, size=size, suffix=".jpg")
    flags = ["--batch_size", str(batch), "--num_threads", str(workers), "--device", device]
    loader = create_dataset(TrainOptions().parse(["--dataroot", str(root), *flags]))
    return Case(lambda: consume(loader), items=2 * count)


def plain_testing(*, count: int, size: int = 256, ngf: int = 64, blocks: int = 9, device: str = "cpu") -> Case:
    """A ResNet in float32 translates images of 256 px one by one; Pillow reads and writes PNGs."""
    root = make_dataset(count=count, size=size, suffix=".png")
    net = plain.resnet(ngf, blocks).eval().to(device)
    data = PlainImages([root / "testA"])

    @torch.no_grad()
    def step() -> None:
        for number in range(len(data)):
            x = data[number]
            for label, image in (("real", x), ("fake", net(x[None].to(device))[0].cpu())):
                to_pil_image(image.add(1).div(2).clamp(0, 1)).save(root / f"{number}_{label}.png")

    return Case(step, items=count, warm_up=0)


def testing(
    *,
    count: int,
    size: int = 256,
    model: str = "cycle_gan",
    flags: Sequence[str] = (),
    network: Sequence[str] = (),
    device: str = "cpu",
) -> Case:
    """test.py on as many images, with its page.

    Args:
        flags: of test.py.
        network: flags of the run.
    """
    import test  # its page needs dominate, which the other cases do without

    root = make_dataset(count=count, size=size, suffix=".png")
    sizes = ["--load_size", str(size), "--crop_size", str(size)]
    opt = TrainOptions().parse(["--name", "run", "--checkpoints_dir", str(root), "--model", model, *sizes, *network])
    net = create_model(opt)
    net.add_discriminators(opt)
    (root / "run").mkdir()
    for name, child in net.named_children():
        torch.save(child.state_dict(), root / "run" / f"latest_{name.replace('net', 'net_')}.pth")
    opt.save(root / "run")
    words = ["--name", "run", "--checkpoints_dir", str(root), "--results_dir", str(root / "results"), *sizes, *flags]
    words += ["--device", device]

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            assert test.main([*words, "--dataroot", str(root / "testA" if "test" in flags else root)]) == 0

    return Case(step, items=count, warm_up=0)


CASES: dict[str, Callable[..., Case]] = {
    function.__name__: function
    for function in (
        plain_cycle_gan, plain_sagan, training, measuring, attention, convolution, plain_loading, loading,
        plain_testing, testing,
    )
}  # fmt: skip
