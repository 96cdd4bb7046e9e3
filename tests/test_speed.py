"""Optimizations for speed and memory do not change results."""

import copy
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.compilers import nop
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import test
import train
from models import networks
from models.networks import attention
from models.networks.layers import (
    NarrowConv2d,
    ReflectionPad2d,
    concatenate_reflected,
    norm_layer,
    normalize_instances,
    run_together,
    spectral_normalize,
)
from models.networks.resnet import ResidualBlock
from options.train_options import TrainOptions
from tests.helpers import random_batch, training_model
from training.compiling import PAYS_AFTER, compile_networks
from util.images import to_tensor
from util.paths import ROOT


def attention_inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, 30, 4), (3, 17, 4), (3, 17, 8))
    return [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]


def with_gradients(inputs: list[torch.Tensor], attend=attention.attend) -> list[torch.Tensor]:
    out = attend(*inputs)
    return [out, *torch.autograd.grad(out.sin().sum(), inputs)]


@pytest.mark.parametrize("chunk", [1, 40, 2**20])
def test_attention_in_chunks_equals_attention(monkeypatch, chunk):
    whole = with_gradients(attention_inputs())
    monkeypatch.setattr(attention, "LARGEST_MAP", 1)
    monkeypatch.setattr(attention, "CHUNK", chunk)
    for a, b in zip(with_gradients(attention_inputs()), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_attention_in_many_chunks_accumulates_in_float32(monkeypatch):
    exact = [torch.randn(1, 2048, size, dtype=torch.float64) for size in (2, 2, 4)]
    expected = with_gradients([x.requires_grad_() for x in exact])
    monkeypatch.setattr(attention, "LARGEST_MAP", 1)
    monkeypatch.setattr(attention, "CHUNK", 1)
    made = with_gradients([x.detach().bfloat16().requires_grad_() for x in exact])
    for a, b in zip(made, expected, strict=True):
        assert (a - b).abs().mean() < 0.02 * b.abs().mean()


def test_attention_in_chunks_can_be_differentiated_twice(monkeypatch):
    monkeypatch.setattr(attention, "LARGEST_MAP", 1)
    assert torch.autograd.gradgradcheck(attention.attend, [x[:1, :3] for x in attention_inputs()])


class LargeTensors(TorchDispatchMode):
    """Records the shapes of tensors with at least `elements` elements that forward and backward passes create."""

    def __init__(self, elements: int):
        super().__init__()
        self.elements = elements
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.shapes += [tuple(tensor.shape) for tensor in made if tensor.numel() >= self.elements]
        return out


@pytest.mark.parametrize(("path", "builds"), [("plain", True), ("chunks", False), ("fused", False)])
def test_only_plain_attention_materializes_the_map(path, builds, monkeypatch):
    """The memory of the others grows with the number of positions, not with its square."""
    if path == "fused":
        monkeypatch.setattr(attention, "attend", attention.attend_fused)
        monkeypatch.setattr(attention, "fused_widths", lambda *_: (16, 16))  # CPUs fuse equal widths alone
    if path == "chunks":
        monkeypatch.setattr(attention, "LARGEST_MAP", 1)
        monkeypatch.setattr(attention, "CHUNK", 2**12)
    block, x = attention.SelfAttention2d(16), torch.randn(1, 16, 16, 16, requires_grad=True)
    torch.nn.init.ones_(block.gamma)
    positions = 16 * 16
    with LargeTensors(positions**2) as large:
        block(x).sum().backward()
    assert x.grad is not None
    assert bool(large.shapes) == builds, large.shapes


@pytest.mark.parametrize(
    ("width", "value_width", "dtype", "expected"),
    [
        (32, 256, torch.float32, (32, 256)),  # not padded: queries and keys have an eighth of the work
        (32, 256, torch.bfloat16, (256, 256)),
        (64, 512, torch.bfloat16, (64, 512)),  # too wide for flash attention
        (32, 256, torch.float16, (32, 256)),  # for GPUs without flash attention
        (3, 20, torch.float32, (8, 24)),
        (3, 20, torch.bfloat16, (24, 24)),
    ],
)
def test_fused_attention_has_the_widths_of_a_kernel(width, value_width, dtype, expected):
    assert attention.fused_widths(width, value_width, dtype) == expected


@pytest.mark.parametrize("widths", [(4, 8), (2, 12), (40, 300)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_fused_attention_equals_attention(dtype, tolerance, widths):
    """GPUs use this branch; scaled_dot_product_attention has kernels for CPUs too."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, 30, widths[0]), (3, 17, widths[0]), (3, 17, widths[1]))
    inputs = [(torch.randn(size, generator=generator) / size[2] ** 0.25).to(dtype).requires_grad_() for size in sizes]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    fused, plain = with_gradients(inputs, attention.attend_fused), with_gradients(inputs, attention.attend_plain)
    for made, other, expected in zip(fused, plain, with_gradients(exact, attention.attend_plain), strict=True):
        assert made.dtype == other.dtype == dtype and made.shape == other.shape
        scale = expected.abs().max()
        assert (made.double() - expected).abs().max() < tolerance * scale
        assert (other.double() - expected).abs().max() < tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_kernels_get_the_channels_of_a_position_side_by_side(dtype, monkeypatch):
    """On GPUs they refuse other strides, and PyTorch then builds the map. The meta device takes the same branch."""
    strides = []
    fused = attention.F.scaled_dot_product_attention
    spy = lambda *qkv, **keywords: strides.extend(x.stride(-1) for x in qkv) or fused(*qkv, **keywords)  # noqa: E731
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    attention.SelfAttention2d(256).to("meta", dtype)(torch.empty(2, 256, 8, 8, device="meta", dtype=dtype))
    assert strides == [1, 1, 1]


def test_a_block_keeps_the_dtype_of_autocast():
    x = torch.randn(1, 16, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention.SelfAttention2d(16)(x).dtype == torch.bfloat16


def test_fused_attention_can_be_differentiated_twice_with_the_math_kernel():
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(attention.attend_fused, [x[:1, :3] for x in attention_inputs()])


def test_attention_in_chunks_saves_no_map_for_backward():
    saved = []
    inputs = [torch.randn(1, 4097, size, requires_grad=True) for size in (2, 2, 4)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        attention.attend(*inputs)
    assert max(saved) == 4097 * 4


def test_the_softmax_of_attention_is_float32_under_autocast():
    block = attention.SelfAttention2d(8)
    with torch.autocast("cpu", torch.bfloat16):
        weights = block.weights(torch.randn(1, 8, 4, 4))
    assert weights.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_instance_norm_written_out_equals_instance_norm(dtype, tolerance):
    """Networks that are compiled for a GPU use it."""
    x = (torch.randn(2, 3, 5, 7, dtype=torch.float64) * 3 + 1).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    made, expected = normalize_instances(x, 1e-5), nn.functional.instance_norm(exact)
    assert made.dtype == dtype
    gradients = [torch.autograd.grad(y.sin().sum(), inputs)[0] for y, inputs in ((made, x), (expected, exact))]
    for a, b in ((made, expected), gradients):
        assert (a.double() - b).abs().max() < tolerance * b.abs().max()


def test_deterministic_reflection_equals_reflection():
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    for padding in ((1, 1, 1, 1), (3, 0, 2, 4)):
        made, expected = concatenate_reflected(x, padding), nn.functional.pad(x, padding, mode="reflect")
        assert torch.equal(made, expected)
        gradients = [torch.autograd.grad(y.sin().sum(), x) for y in (made, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", [7, (3, 5)])
def test_narrow_convolution_equals_convolution(kernel):
    layer, x = NarrowConv2d(4, 3, kernel).double(), torch.randn(2, 4, 9, 12, dtype=torch.float64, requires_grad=True)
    made, expected = layer(x), nn.Conv2d.forward(layer, x)
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()]) for y in (made, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_narrow_convolution_reads_its_weight_once():
    """Spectral norm makes a power iteration each time."""
    layer = spectral_norm(NarrowConv2d(4, 3, 7))
    reads = []
    layer.parametrizations.weight[0].register_forward_hook(lambda *_: reads.append(1))
    layer(torch.randn(1, 4, 9, 9))
    assert len(reads) == 1


@pytest.mark.parametrize("compute", [attention.attend_plain, attention._AttendInChunks.apply])
def test_large_products_of_bf16_are_precise(compute):
    """Rounded to bf16, they would make weights wrong by 0.05."""
    query, key, value = (torch.randn(1, 64, 32).mul(scale).bfloat16() for scale in (4, 4, 1))
    exact = torch.softmax(query.double() @ key.double().transpose(1, 2), dim=-1) @ value.double()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compute(query, key, value).double(), exact, atol=0.02, rtol=0.01)


def test_instance_norm_of_channels_last_equals_instance_norm():
    norm, x = norm_layer("instance")(4), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    made = norm(x.contiguous(memory_format=torch.channels_last))
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made, norm(x), rtol=1e-10, atol=1e-12)


def test_padding_keeps_half_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert ReflectionPad2d(1)(torch.randn(1, 2, 4, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (ResidualBlock(3), [3]),
        (ResidualBlock(3, norm="batch"), [2, 1]),
        (spectral_normalize(nn.Conv2d(3, 3, 1)), [2, 1]),
    ],
)
def test_batches_run_together_if_results_are_the_same(net, expected):
    batches, runs = [torch.randn(size, 3, 16, 16) for size in (2, 1)], []
    alone = [net.eval()(batch) for batch in batches]
    net.register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    together = run_together(net, *batches)
    assert runs == expected
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_batches_of_several_sizes_run_separately():
    made = run_together(nn.Conv2d(3, 1, 1), torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 8))
    assert [tuple(image.shape) for image in made] == [(1, 1, 8, 8), (1, 1, 4, 8)]


def test_checkpointed_blocks_are_bit_identical():
    made = []
    for flags in ([], ["--checkpoint_blocks"]):
        model = training_model("--model", "cycle_gan", *flags)
        losses, _ = model.step(random_batch())
        made.append([*losses.values(), *model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("flags", [["--norm", "batch"], ["--spectral_norm_G"], ["--netG", "unet_128"]])
def test_blocks_that_cannot_be_checkpointed(flags):
    with pytest.raises(ValueError, match="--checkpoint_blocks needs --netG resnet"):
        networks.define_G(TrainOptions().parse(["--checkpoint_blocks", *flags]), 3, 3)


def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match="--precision fp16 is for NVIDIA GPUs, not for cpu"):
        training_model("--precision", "fp16")


@pytest.mark.parametrize(("flag", "native", "computed"), [
    ("auto", True, "bf16"), ("auto", False, "fp32"), ("bf16", False, "bf16"), ("fp32", True, "fp32"),
])  # fmt: skip
def test_auto_takes_bf16_where_the_processor_has_instructions_for_it(monkeypatch, caplog, flag, native, computed):
    monkeypatch.setattr("util.device.computes_bf16", lambda device: native)
    assert training_model("--precision", flag).optimization.precision == computed
    assert ("no bf16 instructions" in caplog.text) == (flag == "bf16")


def test_scaled_losses_give_the_same_averages_of_gradients():
    """Adam would take the same step with scaled gradients. Scaling by a power of 2 does not round."""
    averages = []
    for enabled in (False, True):
        model = training_model("--model", "cycle_gan")
        model.optimization.scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=1024.0, growth_interval=1)
        model.step(random_batch())
        optimization = model.optimization
        averages.append([optimizer.state_dict()["state"] for optimizer in optimization.optimizers.values()])
    assert optimization.scaler.get_scale() == 2048  # the gradients of both optimizers were finite
    assert optimization.state_dict()["scaler"]["scale"] == 2048
    torch.testing.assert_close(*averages, rtol=1e-5, atol=1e-12)


def test_gradients_that_overflow_are_skipped():
    model = training_model("--model", "cycle_gan")
    model.optimization.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    before = [weight.clone() for weight in model.netG_A.parameters()]
    model.step(random_batch())
    assert all(torch.equal(a, b) for a, b in zip(before, model.netG_A.parameters(), strict=True))
    assert model.optimization.scaler.get_scale() < 1e38


@pytest.fixture
def compile_with(monkeypatch):
    """Lets networks be compiled by another backend: the default one takes minutes."""
    compile_net = nn.Module.compile

    def use(backend) -> None:
        monkeypatch.setattr(nn.Module, "compile", lambda net, **keywords: compile_net(net, backend=backend, **keywords))

    torch.compiler.reset()  # the number of variants of a function is limited
    yield use
    torch.compiler.reset()


def compiled_networks(model: nn.Module) -> list[str]:
    return [name for name, net in model.named_children() if net._compiled_call_impl]


def test_a_short_run_and_one_with_many_sizes_are_not_compiled():
    model = training_model("--model", "cycle_gan")
    few = compile_networks(model, steps=PAYS_AFTER - 1, sizes=[(32, 32)], batch_size=1)
    assert f"{PAYS_AFTER - 1} steps are too few" in few
    assert "3 sizes" in compile_networks(model, steps=PAYS_AFTER, sizes=[(32, 32), (32, 36), (36, 32)], batch_size=1)
    assert not compiled_networks(model)


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "pix2pix", "--dataroot", ".", "--norm", "batch", "--spectral_norm_D", "--ema_decay", "0.9"],
        ["--model", "sagan", "--netG", "sagan", "--netD", "sagan"],
    ],
)
def test_compiling_changes_no_state(flags, compile_with):
    """Batch statistics, power iterations and random numbers are those of a run that is not compiled."""
    compile_with("aot_eager")
    model = training_model(*flags)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert compile_networks(model, steps=PAYS_AFTER, sizes=[(32, 32)], batch_size=2) == "the networks are compiled"
    assert compiled_networks(model) == [name for name, _ in model.named_children() if not name.endswith("_ema")]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_training_uses_the_code_compiled_before_it(compile_with):
    made = []

    def count(graph, inputs):
        made.append(tuple(inputs[-1].shape))
        return graph.forward

    compile_with(count)
    model = training_model("--model", "pix2pix", "--dataroot", ".", "--norm", "instance")
    compile_networks(model, steps=PAYS_AFTER, sizes=[(32, 32)], batch_size=1)
    tried = len(made)
    assert tried == 2
    model.step(random_batch())
    assert len(made) == tried + 1, "D on real and fake images, as one batch of 2"


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_networks_that_do_not_compile_train_eagerly(where, compile_with):
    def fail(graph, inputs):
        raise NotImplementedError("first line\n\nsecond line\nthird line")

    failing = aot_autograd(**{"fw_compiler": nop, "bw_compiler": nop, f"{where[:1]}w_compiler": fail})
    compile_with(failing)
    model = training_model("--model", "cycle_gan")
    message = compile_networks(model, steps=PAYS_AFTER, sizes=[(32, 32)], batch_size=1)
    assert message.startswith("--compile does not work here (netG_A: ") and message.endswith("; training without")
    assert not compiled_networks(model)
    losses, _ = model.step(random_batch())
    assert len(losses) == 8


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by Dynamo itself
def test_compile_errors_during_training_are_not_hidden(compile_with):
    graphs = []

    def fail_later(graph, inputs):
        graphs.append(graph)
        if len(graphs) > 2:
            raise NotImplementedError("the first batch of 2")
        return graph.forward

    compile_with(fail_later)
    model = training_model("--model", "cycle_gan")
    assert compile_networks(model, steps=PAYS_AFTER, sizes=[(32, 32)], batch_size=1) == "the networks are compiled"
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="the first batch of 2"):
        model.step(random_batch())


def test_training_without_a_compiler_is_eager():
    script = (
        "from training.compiling import compile_networks; from tests.helpers import random_batch, training_model\n"
        "model = training_model('--model', 'cycle_gan')\n"
        "print(compile_networks(model, steps=10000, sizes=[(32, 32)], batch_size=1))\n"
        "losses, _ = model.step(random_batch()); print(len(losses))"
    )
    env = {"CXX": "/no/such/compiler", "PATH": "/nowhere", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert "--compile does not work here (netG_A: " in done.stdout and "C++ compiler" in done.stdout
    assert "training without" in done.stdout
    assert done.stdout.split()[-1] == "8"


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "cycle_gan_attn", "--pool_size", "2", "--ema_decay", "0.9", "--accumulate", "2"],
        ["--model", "cycle_gan", "--batch_head", "2", "--gan_mode", "relativistic", "--lambda_r1", "1"],
        ["--model", "pix2pix", "--dataroot", ".", "--pool_size", "2", "--norm", "instance"],
        ["--model", "sagan", "--netG", "sagan", "--netD", "sagan", "--d_steps", "2", "--batch_size", "2"],
    ],
    ids=lambda flags: flags[1],
)
def test_cuda_graphs_may_overwrite_the_results_of_a_step(flags, monkeypatch):
    """When a step begins, what networks returned in the one before is lost, and so are gradients."""
    made = []
    for overwritten in (False, True):
        model = training_model(*flags)
        results: list[torch.Tensor] = []

        def overwrite(model=model, results=results) -> None:
            for tensor in [*results, *(weight.grad for weight in model.parameters() if weight.grad is not None)]:
                tensor.data.fill_(torch.nan)
            results.clear()

        if overwritten:
            monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", overwrite)
            model.optimization.cuda_graphs = True
            for net in model.children():
                net.register_forward_hook(lambda _net, _args, out, results=results: results.append(out))
        for number in range(3):
            model.optimization.begin_step(share=1.0, progress=0.1, images=2, images_before=2 * number)
            losses, _ = model.step(random_batch(2))
            assert bool(results) == overwritten
        made.append([*losses.values(), *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="about the C library of Linux")
def test_freed_memory_is_reused():
    # With tensors of 64 MB: below 32 MB, the behavior of the C library changes from run to run.
    script = (
        "import resource, sys, torch; from util.device import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "def step(): [torch.ones(2**24) for _ in range(3)]\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(8): step()\n"
        "before = faults()\n"
        "for _ in range(3): step()\n"
        "print(faults() - before)"
    )
    command = [sys.executable, "-c", script]
    kept, freed = (
        int(subprocess.run([*command, how], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "free")
    )
    assert kept < freed / 10, (kept, freed)  # pages that the kernel mapped again


def test_the_gradient_penalty_works_with_attention_in_chunks(monkeypatch):
    monkeypatch.setattr(attention, "LARGEST_MAP", 1)
    model = training_model("--model", "cycle_gan_attn", "--gan_mode", "wgangp")
    losses, _ = model.step(random_batch())
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_results_in_bf16_are_close(tiny_data, tmp_path):
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    flags = ["--dataroot", str(tiny_data), "--crop_size", "32", "--load_size", "32", "--ngf", "8", "--ndf", "8"]
    flags += ["--netG", "resnet_6blocks", "--n_epochs", "1", "--n_epochs_decay", "0", "--display_id", "0"]
    assert train.main([*places, *flags, "--model", "cycle_gan_attn", "--precision", "bf16", "--no_html"]) == 0
    images = []
    for precision in ([], ["--precision", "bf16"]):  # a run trained in bf16 is tested in fp32 by default
        results = tmp_path / "_".join(["results", *precision])
        assert test.main([*places, "--results_dir", str(results), "--dataroot", str(tiny_data), *precision]) == 0
        fakes = sorted((results / "run" / "test_latest" / "images").glob("*_fake_B.png"))
        images.append(torch.stack([to_tensor(Image.open(fake)) for fake in fakes]))
    difference = (images[0] - images[1]).abs().mean() * 127.5
    assert 0 < difference < 2
