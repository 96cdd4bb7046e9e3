"""The order of the packages, what importing them costs and changes, and flags that match the registries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import losses
from models.networks import (
    DISCRIMINATORS,
    FEATURE_DISCRIMINATORS,
    GENERATORS,
    IMAGE_DISCRIMINATORS,
    NOISE_GENERATORS,
    layers,
    resample,
)
from options import choices
from training.features import EXTRACTORS
from training.schedules import make_scheduler
from util.device import PRECISIONS

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmarks", "scripts", "display", "training", "inference", "models", "data", "options", "util")


def run_python(code: str) -> str:
    """What a fresh interpreter in the clone prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def test_packages_import_in_one_direction():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_no_package_imports_the_scripts():
    """import-linter takes packages alone, and train.py and test.py are modules. Only benchmarks run them."""
    for package in set(PACKAGES) - {"benchmarks"}:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                assert not {"train", "test"} & set(names), path


def test_options_import_no_torch():
    modules = run_python("import sys, options.train_options, options.test_options; print(*sys.modules)").split()
    assert "options.train_options" in modules
    assert not {"torch", "numpy", "PIL", "data", "models"} & set(modules)


def test_networks_import_torch_alone():
    modules = run_python(
        "import sys; from models.networks.attention import SelfAttention2d; print(*sys.modules)"
    ).split()
    assert "models.networks.attention" in modules
    assert not {"PIL", "tifffile", "torchvision", "data", "options", "models.base_model"} & set(modules)


def test_importing_changes_nothing_of_the_host():
    code = """
import atexit, faulthandler, importlib, locale, logging, os, pkgutil, random, signal, socket, sys, threading, warnings
registered = []
atexit.register = lambda function, *args, **keywords: registered.append(function) or function
import multiprocessing, numpy, PIL.Image, PIL.ImageFile, torch  # what these and the next ones change is theirs
for name in {third_party}:
    if importlib.util.find_spec(name):
        importlib.import_module(name)
registered.clear()

def state():
    return {
        "torch": (
            torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.get_num_threads(),
            torch.get_num_interop_threads(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
        ),
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state())),
        "numpy": (numpy.geterr(), numpy.get_printoptions()),
        "pillow": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES, sorted(PIL.Image.OPEN)),
        "logging": [(log.level, log.handlers[:]) for log in map(logging.getLogger, ("", "tifffile", "PIL"))],
        "warnings": (list(warnings.filters), warnings.showwarning),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr, faulthandler.is_enabled()),
        "process": (
            locale.setlocale(locale.LC_ALL), os.getcwd(), dict(os.environ), sys.path[:], sys.getrecursionlimit(),
            socket.getdefaulttimeout(), multiprocessing.get_start_method(allow_none=True), threading.active_count(),
        ),
        "matplotlib": "matplotlib.pyplot" in sys.modules,
    }

before, modules = state(), ["train", "test", "hubconf"]
for package in {packages}:
    modules += [package, *(module.name for module in pkgutil.walk_packages([package], f"{package}."))]
for name in modules:
    importlib.import_module(name)
    after = state()
    assert after == before, (name, [(key, before[key], after[key]) for key in before if after[key] != before[key]])
assert len(modules) > 100
own = {"train", "test", *{packages}}
assert not [function for function in registered if function.__module__.split(".")[0] in own], registered
"""
    third_party = ("torchvision", "tifffile", "tqdm", "visdom", "wandb", "tensorboard", "torchmetrics")
    run_python(code.replace("{packages}", repr(PACKAGES)).replace("{third_party}", repr(third_party)))


@pytest.mark.parametrize(
    ("names", "registry"),
    [
        (choices.GENERATORS, GENERATORS),
        (choices.NOISE_GENERATORS, NOISE_GENERATORS),
        (choices.DISCRIMINATORS, DISCRIMINATORS),
        (choices.FEATURE_DISCRIMINATORS, FEATURE_DISCRIMINATORS),
        (choices.IMAGE_DISCRIMINATORS, IMAGE_DISCRIMINATORS),
        (choices.NORMS, layers.NORMS),
        (choices.RESAMPLINGS, resample.RESAMPLINGS),
        (choices.PRECISIONS, PRECISIONS),
        (choices.FEATURES, EXTRACTORS),
    ],
)
def test_choices_are_those_of_the_registry(names, registry):
    assert names == tuple(registry)


@pytest.mark.parametrize("name", choices.INIT_TYPES)
def test_every_init_type_is_known(name):
    layer = nn.Conv2d(1, 1, 1)
    before = layer.weight.clone()
    layers.init_weights(layer, name)
    assert layer.weight != before


@pytest.mark.parametrize("policy", choices.LR_POLICIES)
def test_every_lr_policy_is_known(policy):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    make_scheduler(optimizer, policy, n_epochs=1, n_epochs_decay=1, lr_decay_iters=1)


@pytest.mark.parametrize("mode", losses.GAN_MODES)
def test_every_gan_mode_is_known(mode):
    losses.GANLoss(mode)
