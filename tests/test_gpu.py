"""What only a GPU can show: python -m pytest -m gpu. Most important first; all of it takes about three minutes.

The variable TEST_DEVICE=cpu runs what CPUs can, to try out these tests.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import train as training
from models import create_model, networks
from models.base_model import BaseModel
from models.losses import GAN_MODES, GANLoss
from models.networks import attention
from options.train_options import TrainOptions
from tests.golden.fill import fill
from tests.helpers import assert_equal_checkpoints, default_dtype
from tests.test_networks import GOLDEN, build_golden, golden_networks
from training.compiling import PAYS_AFTER, compile_networks
from training.finite import LossGuard
from training.optimization import create_optimization
from util import distributed
from util.device import FEW_SIZES, autocast, tuning
from util.registry import choices

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch reads it at the first matrix product

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)
if DEVICE.type == "cuda":
    torch.cuda.init()

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # compilers give advice as warnings
on_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="about CUDA itself")

ROOT = Path(__file__).parent.parent
MODELS = [name for name in choices("models") if name != "test"]
# Of outputs, losses and gradients, by norm. Half precision is here to be right, not to be exact.
TOLERANCE = {"fp32": 1e-3, "tf32": 5e-2, "bf16": 0.25, "fp16": 5e-2}
PRECISIONS = [name for name in TOLERANCE if DEVICE.type == "cuda" or name in ("fp32", "bf16")]
CASES = {  # name -> flags of a model
    **{name: ["--model", name] for name in MODELS},
    "wgangp": ["--model", "cycle_gan_attn", "--gan_mode", "wgangp", "--resample", "blur"],
    "penalties": [
        *("--model", "cycle_gan_attn", "--gan_mode", "relativistic", "--lambda_r1", "1", "--lambda_r2", "1"),
        *("--lambda_zero_gp", "1", "--batch_head", "2", "--norm", "none", "--spectral_norm_D", "--resample", "nearest"),
    ],
    "sagan_resnet": ["--model", "sagan", "--netG", "sagan_resnet", "--netD", "sagan_resnet", "--minibatch_std"],
    "augmented": ["--model", "sagan", "--diffaugment", "color,translation,cutout", "--gan_mode", "vanilla"],
}


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """PyTorch's switches as train.py sets them by default, whatever a test leaves behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(8, os.cpu_count() or 1))  # for the references
    apply()
    yield
    apply()
    torch.set_num_threads(threads)


def apply(*, tf32: bool | None = None) -> None:
    """Set PyTorch's switches, but for timing cuDNN's algorithms, which takes seconds for each shape."""
    tuning(DEVICE, tf32=tf32, sizes=FEW_SIZES + 1).apply()


def use(precision: str) -> str:
    """Set the switches of a precision, "tf32" among them, and return the one of autocast."""
    if DEVICE.type == "cuda":
        apply(tf32=precision == "tf32")
    return "fp32" if precision == "tf32" else precision


def assert_close(made: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Assert that two tensors differ by a part of the norm of `expected`, at most."""
    made, expected = (x.detach().cpu().double() for x in (made, expected))
    error = ((made - expected).norm() / expected.norm()).item()
    assert error < tolerance, f"{what}: relative error {error:.2g}"


def flat_gradients(net: nn.Module) -> Tensor:
    grads = [weight.grad for weight in net.parameters()]
    return torch.cat([grad.detach().flatten().cpu().double() for grad in grads if grad is not None])


# Networks


@pytest.mark.parametrize("name", golden_networks())
def test_outputs_equal_golden_values(name):
    use("fp32")
    entry = GOLDEN[name]
    net = build_golden(entry["config"]).eval()
    net.load_state_dict(fill(net.state_dict()))
    with torch.no_grad():
        made = net.to(DEVICE)(entry["input"].to(DEVICE)).cpu()
    torch.testing.assert_close(made, entry["output"], rtol=1e-3, atol=1e-3)


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A small network of a registry, and an input."""
    kind, name = name.split(" ")
    if kind == "G":
        stage = "down3" if name.startswith("unet") else "bottleneck"
        keywords = {"norm": "batch"} if name.startswith("unet") else {}
        net = networks.GENERATORS[name](3, 3, ngf=16, attention=[stage], **keywords)
        return net, torch.rand(2, 3, *[256 if name == "unet_256" else 128] * 2) * 2 - 1
    if kind == "D":
        extra = {} if name == "pixel" else {"attention": ["bottleneck"]}
        return networks.DISCRIMINATORS[name](3, ndf=16, **extra), torch.rand(2, 3, 64, 64) * 2 - 1
    if kind == "projected":
        try:
            return networks.FEATURE_DISCRIMINATORS[name](3, ndf=16), torch.rand(2, 3, 128, 128) * 2 - 1
        except ValueError as error:
            pytest.skip(str(error))
    if kind == "noise":
        return networks.NOISE_GENERATORS[name](image_size=32, ngf=16), torch.randn(8, 128)
    return networks.IMAGE_DISCRIMINATORS[name](image_size=32, ndf=16), torch.rand(4, 3, 32, 32) * 2 - 1


NETWORKS = [
    *(f"G {name}" for name in networks.GENERATORS),
    *(f"D {name}" for name in networks.DISCRIMINATORS),
    *(f"projected {name}" for name in networks.FEATURE_DISCRIMINATORS),
    *(f"noise {name}" for name in networks.NOISE_GENERATORS),
    *(f"image {name}" for name in networks.IMAGE_DISCRIMINATORS),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_those_on_a_cpu(name, precision):
    """Outputs and gradients, against float64."""
    torch.manual_seed(0)
    net, x = network(name)
    for block in attention.attention_blocks(net).values():
        nn.init.constant_(block.gamma, 0.3)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    made, grads = [], []
    for device, kind in ((torch.device("cpu"), "exact"), (DEVICE, precision)):
        net.load_state_dict(state)
        net.zero_grad()
        dtype = torch.float64 if kind == "exact" else torch.float32
        net.to(device, dtype)
        with autocast(device, "fp32" if kind == "exact" else use(precision)):
            out = net(x.to(device, dtype))
        generator = torch.Generator().manual_seed(1)
        out.backward(torch.randn(out.shape, generator=generator).to(out))
        made.append(out)
        grads.append(flat_gradients(net))
    assert_close(made[1], made[0], TOLERANCE[precision], "output")
    assert_close(grads[1], grads[0], 3 * TOLERANCE[precision], "gradients")


@pytest.mark.parametrize("widths", [(32, 256), (64, 512), (4, 32), (3, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_has_a_fused_kernel_for_its_widths(widths, dtype):
    """It would raise an error if neither kernel took them, and its memory grows with the number of positions."""
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel(backends if DEVICE.type == "cuda" else [*backends, SDPBackend.MATH]):
        compare_attention(widths, dtype, positions=4096 if DEVICE.type == "cuda" else 64)


@pytest.mark.parametrize("positions", [64, 256, 4096])
@pytest.mark.parametrize("widths", [(8, 64), (16, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_by_the_kernel_that_pytorch_prefers(widths, dtype, positions):
    """For widths up to 128, that may be one of cuDNN."""
    compare_attention(widths, dtype, positions=positions)


def compare_attention(widths: tuple[int, int], dtype: torch.dtype, *, positions: int) -> None:
    """Assert that fused attention and its gradients equal those of two matrix products in float32."""
    if DEVICE.type != "cuda" and dtype == torch.float16:
        pytest.skip("about CUDA itself")
    use("fp32")
    generator = torch.Generator().manual_seed(0)
    sizes = widths[0], widths[0], widths[1]
    maps = [torch.randn(2, channels, positions, generator=generator) / widths[0] ** 0.25 for channels in sizes]
    inputs = [x.to(DEVICE, dtype).transpose(1, 2).requires_grad_() for x in maps]  # as convolutions leave them
    exact = [x.detach().float().requires_grad_() for x in inputs]
    out = attention.attend_fused(*inputs)
    made = [out, *torch.autograd.grad(out.float().sin().sum(), inputs)]
    out = attention.attend_plain(*exact)
    expected = [out, *torch.autograd.grad(out.sin().sum(), exact)]
    for a, b in zip(made, expected, strict=True):
        assert_close(a, b, 1e-3 if dtype == torch.float32 else 3e-2, str(dtype))


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_attention_grows_with_the_positions(dtype):
    maps = [torch.randn(1, channels, 2**15, device=DEVICE, dtype=dtype) for channels in (32, 32, 256)]
    inputs = [x.transpose(1, 2).requires_grad_() for x in maps]  # as convolutions leave them
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention.attend(*inputs).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 0.5e9, "the map alone has 1e9 elements"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", GAN_MODES)
def test_losses_equal_those_on_a_cpu(mode, precision, same_noise):
    loss = GANLoss(mode, lambda_r1=1.0, lambda_r2=1.0, lambda_zero_gp=1.0)
    torch.manual_seed(0)
    net = networks.DISCRIMINATORS["basic"](3, ndf=8, attention=["bottleneck"])
    images = [torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(2)]
    made = []
    for device, kind in ((torch.device("cpu"), "fp32"), (DEVICE, precision)):
        torch.manual_seed(1)
        net.to(device).zero_grad()
        real, fake = (image.to(device) for image in images)
        with autocast(device, use(kind)):
            total = loss.total(loss.discriminator(net, real, fake)) + loss.generator(net, real, fake)
        total.backward()
        made.append((total, flat_gradients(net)))
    assert_close(made[1][0], made[0][0], TOLERANCE[precision], "loss")
    assert_close(made[1][1], made[0][1], 3 * TOLERANCE[precision], "gradients")


# Steps


def options(case: str, *flags: str) -> list[str]:
    """The flags of a tiny model."""
    own = CASES[case]
    side = "128" if own[1] == "pix2pix_attn" else "32"
    tiny = ["--ngf", "8", "--ndf", "8", "--crop_size", side, "--load_size", side, "--device", DEVICE.type]
    if own[1] == "pix2pix_attn":
        tiny += ["--netG", "unet_128"]
    elif own[1] != "sagan":
        tiny += ["--netG", "resnet_6blocks"]
    if own[1] != "sagan":
        tiny += ["--no_dropout"]  # its masks differ between devices
    return [*tiny, *own, "--batch_size", "2", *flags]


def model_on(device: torch.device, flags: list[str], *, mode: str = "") -> BaseModel:
    """A model in training on a device, with weights from the seed; compiled in a mode, if there is one."""
    opt = TrainOptions().parse([*flags, "--dataroot", "."])
    torch.manual_seed(0)
    model = create_model(opt).to(device)
    model.prepare_training(opt, create_optimization(opt, device))
    for net in model.children():
        for block in attention.attention_blocks(net).values():
            nn.init.constant_(block.gamma, 0.3)
    if mode:
        torch.compiler.reset()  # the number of variants is limited, and beyond that networks run eagerly
        model.to(memory_format=torch.channels_last)
        made = compile_networks(model, steps=PAYS_AFTER, sizes=[(32, 32)], batch_size=2, mode=mode)
        assert made == "the networks are compiled"
    return model


def batch_of(flags: list[str], number: int = 0) -> dict[str, Tensor]:
    """A batch of two images of each domain, pinned where there is a GPU."""
    opt = TrainOptions().parse([*flags, "--dataroot", "."])
    generator = torch.Generator().manual_seed(number)
    sizes = {"A": opt.input_nc, "B": opt.output_nc}
    batch = {
        side: torch.rand(2, channels, opt.crop_size, opt.crop_size, generator=generator) * 2 - 1
        for side, channels in sizes.items()
    }
    return {side: images.pin_memory() if DEVICE.type == "cuda" else images for side, images in batch.items()}


@pytest.fixture
def same_noise(monkeypatch):
    """Random numbers are drawn on the CPU in float32, so that both devices and all precisions see the same."""

    def drawn_on_cpu(draw, **fixed):
        def drawn(*size, device=None, **keywords):
            return draw(*size, **keywords, **fixed).to(device or "cpu", torch.get_default_dtype() if fixed else None)

        return drawn

    for name in ("rand", "randn"):
        monkeypatch.setattr(torch, name, drawn_on_cpu(getattr(torch, name), dtype=torch.float32))
    for name in ("randint", "randperm"):
        monkeypatch.setattr(torch, name, drawn_on_cpu(getattr(torch, name)))
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.randn(x.shape).to(x))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_steps_equal_those_on_a_cpu(case, precision, same_noise):
    """Losses and gradients of a step, against float64 on the CPU."""
    autocasting = use(precision)
    made = []
    for device, flags in (
        (torch.device("cpu"), options(case)),
        (DEVICE, options(case, "--precision", autocasting)),
    ):
        exact = device.type == "cpu" and not made
        model = model_on(device, flags)
        batch = batch_of(flags)
        with default_dtype(torch.float64 if exact else torch.float32):
            if exact:
                model.double()
                batch = {side: images.double() for side, images in batch.items()}
            torch.manual_seed(1)
            losses, _ = model.step(batch)
        nets = {name: net for name, net in model.named_children() if not name.endswith("_ema")}
        scale = model.optimization.loss_scale() or 1.0
        made.append((losses, {name: flat_gradients(net) / scale for name, net in nets.items()}))
    assert made[0][0].keys() == made[1][0].keys()
    for name, loss in made[0][0].items():
        assert loss.item() == pytest.approx(made[1][0][name].item(), rel=TOLERANCE[precision], abs=TOLERANCE[precision])
    if precision in ("fp32", "tf32"):  # in half precision the second optimizer sees the step of the first
        for name, grads in made[0][1].items():
            assert_close(made[1][1][name], grads, 10 * TOLERANCE[precision], name)


@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_does_not_wait_for_the_gpu(case, precision):
    flags = options(case, "--precision", precision, *([] if "sagan" in CASES[case] else ["--pool_size", "2"]))
    model, guard = model_on(DEVICE, flags), LossGuard()
    optimization = model.optimization
    for number in range(4):  # by then optimizers and pools have their tensors
        batch = batch_of(flags, number)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
        try:
            optimization.begin_step(share=1.0, progress=0.1, images=2, images_before=2 * number)
            losses, _ = model.step(batch)
            guard.check(losses, ["a.png"])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    guard.settle()


@on_cuda
@pytest.mark.parametrize("case", ["cycle_gan_attn", "sagan"])
def test_many_steps_in_fp16_stay_finite(case):
    flags = options(case, "--precision", "fp16")
    model = model_on(DEVICE, flags)
    batches = [batch_of(flags, number) for number in range(8)]
    before = torch.cat([weight.flatten() for weight in model.parameters()]).clone()
    finite = torch.ones((), dtype=torch.bool, device=DEVICE)
    for number in range(500):
        losses, _ = model.step(batches[number % 8])
        finite &= torch.stack([loss.detach().float() for loss in losses.values()]).isfinite().all()
    after = torch.cat([weight.flatten() for weight in model.parameters()])
    assert finite and after.isfinite().all() and not torch.equal(before, after)
    scale = model.optimization.loss_scale()
    assert scale and scale >= 1


# Runs


def run_flags(case: str, tiny_data: Path, paired_data: Path, *flags: str) -> list[str]:
    """The flags of a tiny run."""
    paired = CASES[case][1].startswith(("pix2pix",))
    data = ["--dataroot", str(paired_data if paired else tiny_data), "--name", "run", "--max_dataset_size", "3"]
    length = ["--n_epochs", "1", "--n_epochs_decay", "1", "--print_freq", "1", "--no_html", "--display_id", "0"]
    return [*options(case), *data, *length, "--num_threads", "0", *flags]


@pytest.mark.parametrize("case", ["cycle_gan_attn", "sagan_resnet", "augmented", "wgangp", "penalties", "pix2pix_attn"])
def test_a_deterministic_run_resumes_bit_for_bit(case, tiny_data, paired_data, tmp_path):
    flags = run_flags(case, tiny_data, paired_data, "--deterministic", "--ema_decay", "0.9", "--precision", "bf16")
    for folder, limits in (("whole", ["0"]), ("parts", ["0.00001", "0"])):
        for number, limit in enumerate(limits):
            again = ["--continue_train"] if number else []
            places = ["--checkpoints_dir", str(tmp_path / folder), "--max_minutes", limit]
            assert training.main([*flags, *places, *again]) == 0
    assert_equal_checkpoints(tmp_path / "whole" / "run", tmp_path / "parts" / "run")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_every_model_trains_an_epoch(case, precision, tiny_data, paired_data, tmp_path):
    if precision == "fp16" and DEVICE.type != "cuda":
        pytest.skip("about CUDA itself")
    flags = run_flags(case, tiny_data, paired_data, "--precision", precision, "--n_epochs_decay", "0")
    assert training.main([*flags, "--checkpoints_dir", str(tmp_path), "--health_freq", "2"]) == 0
    assert (tmp_path / "run" / "latest_net_G.pth").exists() or (tmp_path / "run" / "latest_net_G_A.pth").exists()


def test_steps_in_a_process_group_are_those_of_one_process(monkeypatch):
    """nccl on GPUs: gradients go through all_reduce, here with a single process."""
    flags = options("cycle_gan_attn", "--deterministic")
    tuning(DEVICE, deterministic=True).apply()
    made = []
    for connected in (False, True):
        model = model_on(DEVICE, flags)
        if connected:
            backend = "cpu:gloo,cuda:nccl" if DEVICE.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            monkeypatch.setattr(distributed, "world_size", lambda: 2)
        try:
            losses, _ = model.step(batch_of(flags))
            assert distributed.all_reduce_max(3) == 3
        finally:
            if connected:
                dist.destroy_process_group()
        made.append([*losses.values(), *model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_results_of_test_py(tiny_data, paired_data, tmp_path):
    pytest.importorskip("dominate")
    import test as testing

    places = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    assert training.main([*run_flags("cycle_gan_attn", tiny_data, paired_data), *places]) == 0
    for precision in ("fp32", "bf16", *(["fp16"] if DEVICE.type == "cuda" else [])):
        results = ["--results_dir", str(tmp_path / precision), "--dataroot", str(tiny_data)]
        assert testing.main([*places, *results, "--precision", precision, "--device", DEVICE.type]) == 0
        assert len(list((tmp_path / precision).rglob("*_fake_B.png"))) == 5


# Compiled


@on_cuda
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("case", ["cycle_gan_attn", "sagan"])
def test_compiled_steps_equal_eager_ones(case, mode, monkeypatch):
    use("fp32")
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    flags = options(case, *(["--compile", "--cuda_graphs"] if mode != "default" else []))
    made = []
    for compiled in ("", mode):
        model = model_on(DEVICE, flags, mode=compiled)
        torch.manual_seed(1)
        trajectory = []
        for number in range(4):
            model.optimization.begin_step(share=1.0, progress=0.1, images=2, images_before=2 * number)
            losses, _ = model.step(batch_of(flags, number))
            trajectory.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        made.append(torch.stack(trajectory).cpu())
    torch.testing.assert_close(made[1], made[0], rtol=2e-2, atol=2e-2)


@on_cuda
@pytest.mark.parametrize("graphs", [[], ["--cuda_graphs"]], ids=["default", "cuda_graphs"])
def test_a_compiled_run_resumes(graphs, tiny_data, paired_data, tmp_path):
    script = "import sys, train; from training import compiling; compiling.PAYS_AFTER = 1; sys.exit(train.main())"
    flags = run_flags("cycle_gan_attn", tiny_data, paired_data, "--compile", *graphs, "--batch_size", "1")
    for limit in (["0.00001"], ["0", "--continue_train"]):  # each in a process of its own, as users have it
        command = [sys.executable, "-c", script, *flags, "--checkpoints_dir", str(tmp_path), "--max_minutes", *limit]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "the networks are compiled" in done.stdout
    assert torch.load(tmp_path / "run" / "latest_state.pth", weights_only=True)["total_images"] == 6
