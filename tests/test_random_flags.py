"""Random combinations of flags: each one trains, resumes and is tested, or is refused with a message about a flag."""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import test as testing
import train as training
from options.choices import NOISE_GENERATORS
from options.train_options import TrainOptions
from tests.conftest import draw_shapes
from tests.test_label_maps import label_map
from util.errors import RemediedError
from util.registry import choices, find_class

EXAMPLES = 200  # of all models together
MODELS = [name for name in choices("models") if name != "test"]  # which is for test.py alone

# Flag -> values to draw from; True stands for a switch that is on.
SHARED: dict[str, list] = {
    "accumulate": [2],
    "attn_G": ["none", "bottleneck", "down2,up1"],
    "attn_D": ["none", "bottleneck", "layer1"],
    "batch_head": [0, 2],
    "batch_size": [1, 2, 3],
    "beta1": [0.0, 0.5],
    "center_crop": [0, 20, "max"],
    "checkpoint_blocks": [True],
    "class_of": ["([0-9])", "folder"],
    "compile": [True],
    "deterministic": [True],
    "diffaugment": ["none", "color,translation", "cutout"],
    "cycle_noise": [0.1],
    "direction": ["AtoB", "BtoA"],
    "d_steps": [1, 2],
    "ema_decay": [0.0, 0.9],
    "ema_halflife": [2],
    "flip_equivariance": [True],
    "gan_mode": ["lsgan", "vanilla", "wgangp", "hinge", "relativistic"],
    "identity_decay": [True],
    "init_type": ["normal", "xavier", "kaiming", "orthogonal"],
    "input_nc": [1, 3],
    "label_A": [True],
    "label_B": [True],
    "lambda_identity": [0, 0.5],
    "lambda_projected": [1],
    "lambda_r1": [0, 2],
    "lambda_r2": [0, 2],
    "lambda_zero_gp": [0, 0.1],
    "lr_G": [0.001],
    "lr_policy": ["linear", "step", "plateau", "cosine"],
    "minibatch_std": [True],
    "n_layers_D": [1, 2],
    "nce_idt": [True],
    "nce_layers": ["0", "4,12"],
    "netD": ["basic", "n_layers", "pixel", "projected"],
    "netG": ["resnet_6blocks", "resnet_9blocks"],
    "no_dropout": [True],
    "no_flip": [True],
    "no_html": [True],
    "norm": ["instance", "batch", "syncbatch", "none"],
    "num_patches": [2, 8],
    "output_nc": [1, 3],
    "penalty_every": [2],
    "pool_size": [0, 1],
    "precision": ["fp32", "bf16"],
    "preprocess": ["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"],
    "print_freq": [0, 1],
    "resample": ["deconv", "nearest", "blur"],
    "save_by_iter": [True],
    "save_latest_freq": [0, 1],
    "serial_batches": [True],
    "spectral_norm_D": [True],
    "spectral_norm_G": [True],
    "update_html_freq": [0, 1],
    "use_tensorboard": [True],
    "z_dim": [4],
}
TESTING = {"batch_size", "direction", "preprocess", "precision"}  # test.py takes its own values of these
SIZES = {"A": (40, 36), "B": (36, 44)}  # px


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Two images a domain: A and B in different sizes, also as label maps, and pairs."""
    roots = {name: tmp_path_factory.mktemp(name) for name in ("domains", "labels", "pairs")}
    for phase in ("train", "test"):
        for number in range(2):
            for domain, size in SIZES.items():
                images = {
                    "domains": draw_shapes(f"{phase}{domain}{number}", size),
                    "labels": label_map("rgb", number, size),
                }
                for root, image in images.items():
                    path = roots[root] / f"{phase}{domain}" / f"{number}.png"
                    path.parent.mkdir(exist_ok=True)
                    image.save(path)
            path = roots["pairs"] / phase / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            draw_shapes(f"{path}", (80, 36)).save(path)
    return roots


def combinations(model: str) -> st.SearchStrategy[dict]:
    """Up to 8 of the flags that the model declares, each with a value."""
    declared = TrainOptions().parse(["--model", model, "--dataroot", "."]).as_dict()
    unused = find_class("models", model).unused_flags
    values = {flag: values for flag, values in SHARED.items() if flag in declared and flag not in unused}
    if model == "sagan":
        values |= {net: list(NOISE_GENERATORS) for net in ("netG", "netD")}
        values |= {attention: ["none", "default"] for attention in ("attn_G", "attn_D")}
    names = st.lists(st.sampled_from(sorted(values)), unique=True, max_size=8)
    return names.flatmap(lambda names: st.fixed_dictionaries({name: st.sampled_from(values[name]) for name in names}))


def words(flags: dict) -> list[str]:
    """The flags as words of a command line."""
    return [
        word
        for flag, value in flags.items()
        for word in ([f"--{flag}"] if value is True else [f"--{flag}", str(value)])
    ]


def outcome(main, argv: list[str], capsys) -> str:
    """ "done", or the message with which a combination of flags was refused."""
    try:
        assert main(argv) == 0
    except SystemExit as refusal:
        assert refusal.code == 2
        message = capsys.readouterr().err.partition("error: ")[2]  # after the usage, which names flags too
    except ValueError as refusal:
        message = f"{refusal} {refusal.advice() if isinstance(refusal, RemediedError) else ''}"
    else:
        return "done"
    assert "--" in message, f"{argv}: {message}"
    return message


@pytest.mark.faults
@pytest.mark.parametrize("model", MODELS)
def test_random_flags_train_resume_and_test(model, data, capsys):
    counts: Counter[bool] = Counter()
    usual = "pairs" if model.startswith("pix2pix") else "domains"

    @settings(
        max_examples=EXAMPLES // len(MODELS) + 1, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )  # fmt: skip
    @given(combinations(model))
    def check(flags):
        folder = Path(tempfile.mkdtemp())
        try:
            sagan = model == "sagan"
            root = data["labels" if flags.keys() & {"label_A", "label_B"} else usual]
            place = ["--name", "run", "--checkpoints_dir", str(folder), "--device", "cpu"]
            base = {"model": model, "dataroot": root, "ngf": 8, "ndf": 8, "crop_size": 32, "load_size": 34}
            base |= {"n_epochs": 1, "n_epochs_decay": 0, "display_id": 0}
            base |= {"netG": "sagan", "netD": "sagan"} if sagan else {"netG": "resnet_6blocks"}
            argv = [*place, *words(base | flags)]
            trained = outcome(training.main, argv, capsys)
            counts[trained == "done"] += 1
            if trained != "done":
                return
            assert outcome(training.main, [*place, "--continue_train", "--n_epochs", "2"], capsys) == "done"
            test_flags = {flag: value for flag, value in flags.items() if flag in TESTING}
            test_flags |= {"num_test": 2, "results_dir": folder / "results"}
            tested = outcome(testing.main, [*place, *words(test_flags)], capsys)
            if tested == "done":
                assert list((folder / "results" / "run" / "test_latest" / "images").iterdir())
        finally:
            shutil.rmtree(folder)

    check()
    assert counts[True] >= counts.total() / 3, f"{counts[False]} of {counts.total()} combinations were refused"
