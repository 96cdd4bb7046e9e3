"""The flags of train.py."""

import shlex
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from options import values
from options.base_options import BaseOptions, Options
from options.choices import LR_POLICIES, PRECISIONS


class TrainOptions(BaseOptions):
    """Declares the flags of training beside the shared ones. A resumed run keeps them, except for `own_flags`."""

    is_train = True
    description = "Train a model. @FILE reads flags from a text file."
    examples = (
        "--dataroot ./datasets/maps --name maps --model cycle_gan_attn", "--name maps --continue_train",
        "@recipes/demo.txt",
    )  # fmt: skip
    own_flags = frozenset(
        (
            "name", "suffix", "checkpoints_dir", "continue_train", "epoch", "load_iter", "epoch_count", "init_from",
            "init_partial", "override", "dry_run",
        )
    )  # fmt: skip
    # A resumed run may change these: its length, what is saved and displayed, and the device.
    free_flags = frozenset(
        (
            "n_epochs", "n_epochs_decay", "train_minutes", "max_minutes", "on_nan", "save_latest_freq",
            "save_epoch_freq", "save_by_iter", "print_freq", "update_html_freq", "no_html", "display_freq",
            "health_freq", "display_id", "display_ncols", "display_server", "display_port", "display_env",
            "display_winsize", "use_tensorboard", "use_wandb", "wandb_project_name", "verbose", "num_threads",
            "checkpoint_blocks", "device", "gpu_ids", "skip_bad_images", "cpu_threads", "metrics", "metrics_freq",
            "metrics_images", "metrics_features", "metrics_weights", "content", "label_dir", "best",
        )
    )  # fmt: skip

    def initialize(self, parser: ArgumentParser) -> None:
        """Declare all flags."""
        super().initialize(parser)
        add_training_flags(parser)
        add_speed_flags(parser)
        add_lr_flags(parser)
        add_saving_flags(parser)
        add_display_flags(parser)
        add_evaluation_flags(parser)

    def complete(self, flags: dict[str, Any], given: Mapping[str, Any], parser: ArgumentParser) -> None:
        """Fill in the learning rates; refuse flags that contradict each other or have no effect."""
        super().complete(flags, given, parser)
        for rate in ("lr_G", "lr_D"):
            if flags[rate] is None or ("lr" in given and rate not in given):
                flags[rate] = flags["lr"]
        if "ema_decay" in given:
            if "ema_halflife" in given:
                parser.error("--ema_decay and --ema_halflife are two ways to set the same decay: omit one")
            flags["ema_halflife"] = 0  # instead of that of a saved run
        if flags["init_from"] and flags["continue_train"]:
            parser.error("--init_from starts a new run and --continue_train resumes one: omit one of them")
        if flags["init_partial"] and not flags["init_from"]:
            parser.error("--init_partial needs --init_from: it allows older weights that fit in part")
        if flags["override"] and not flags["continue_train"]:
            parser.error("--override needs --continue_train: it allows a resumed run to change its flags")
        if flags["save_by_iter"] and not flags["save_latest_freq"]:
            parser.error("--save_by_iter keeps the checkpoints of --save_latest_freq, which is 0: there are none")
        if flags["best"] and not flags["metrics"]:
            parser.error(f"--best {flags['best']} needs the metric: add --metrics")
        if flags["tf32"] and flags["no_tf32"]:
            parser.error("--tf32 and --no_tf32 contradict each other: omit one")
        if flags["cuda_graphs"] and not flags["compile"]:
            parser.error("--cuda_graphs needs --compile: it replays the kernels of compiled networks")
        epochs = flags["n_epochs"] + flags["n_epochs_decay"]
        if flags["epoch_count"] > epochs:
            parser.error(
                f"--epoch_count {flags['epoch_count']}: --n_epochs {flags['n_epochs']} and --n_epochs_decay "
                f"{flags['n_epochs_decay']} make {epochs} epochs"
            )


def changed_flags(opt: Options, saved: Mapping[str, Any]) -> list[str]:
    """The changes that make a resumed run another run: "--lr 0.001 (so far 0.0002)" for each flag that is not free.

    Attention is free when `cycle_gan` is resumed as `cycle_gan_attn`, and so on: it changes no pixel at first.
    """
    free = TrainOptions.own_flags | TrainOptions.free_flags
    if opt.model == f"{saved.get('model')}_attn":
        free |= {"model", "attn_G", "attn_D"}
    if opt.as_dict().get("lambda_content"):
        free -= {"content"}  # then it is part of a loss
    current = opt.as_dict() | {"dataroot": str(Path(opt.dataroot).absolute())}
    return [
        f"--{flag} {value} (so far {saved[flag]})"
        for flag, value in current.items()
        if flag in saved and value != saved[flag] and flag not in free
    ]


def add_training_flags(parser: ArgumentParser) -> None:
    """Length, start and stop of a run."""
    add = parser.add_argument_group("training").add_argument
    add("--phase", type=values.plain_name, default="train", help="which images: folders PHASEA and PHASEB")
    add("--n_epochs", type=values.non_negative_int, default=100, help="epochs at the initial learning rate")
    add(
        "--n_epochs_decay",
        type=values.non_negative_int,
        default=100,
        help="epochs after these, with a decaying learning rate",
    )
    add("--epoch_count", type=values.positive_int, default=1, help="number of the first epoch")
    add("--continue_train", action="store_true", help="resume the run of this name from its checkpoint, with its flags")
    add("--override", action="store_true", help="let --continue_train change the flags of the run")
    add(
        "--init_from",
        default="",
        help="start from older weights: the name or folder of a run, or a file; new attention changes no pixel",
    )
    text = "let --init_from take the weights that fit by name and shape from files of other networks"
    add("--init_partial", action="store_true", help=text)
    text = "check images, networks, memory, time and folders, write nothing, end with ready or a corrected command"
    add("--dry_run", action="store_true", help=text)
    text = "length of the whole run in minutes, if its epochs do not end first; learning rates fall with the time. 0 = "
    text += "no limit"
    add("--train_minutes", type=values.non_negative_float, default=0.0, help=text)
    text = "save a checkpoint and stop after this many minutes, to be resumed by --continue_train; 0 = no limit"
    add("--max_minutes", type=values.non_negative_float, default=0.0, help=text)
    nan = "after a non-finite loss: stop, or resume the last checkpoint with half the learning rate, 3 times at most"
    add("--on_nan", default="stop", choices=("stop", "rollback"), help=nan)
    text = "gradient accumulation: batches per step, in the memory of one"
    add("--accumulate", type=values.positive_int, default=1, help=text)
    add(
        "--pool_size",
        type=values.non_negative_int,
        default=50,
        help="size of the image pool, from which D sees older fakes; 0 = none",
    )
    add(
        "--ema_decay",
        type=values.fraction,
        default=0.0,
        help="decay of the averaged weights of G in each step, such as 0.999; 0 = no average",
    )
    text = "half-life of the averaged weights of G in images instead, whatever the batch size, at most a twentieth of "
    text += "the images seen; 0 = use --ema_decay"
    add("--ema_halflife", type=values.non_negative_int, default=0, help=text)


def add_speed_flags(parser: ArgumentParser) -> None:
    """Precision, compilation, memory and threads."""
    add = parser.add_argument_group("speed").add_argument
    text = "of the forward pass. bf16: about twice as fast on processors with instructions for it, results differ in "
    text += "the third digit; auto: bf16 there, else fp32; fp16: for NVIDIA GPUs without bf16; weights, losses and "
    text += "statistics stay fp32"
    add("--precision", default="fp32", choices=("auto", *PRECISIONS), help=text)
    text = "compile the networks: takes a minute or more, then steps are up to 10%% faster; results differ by rounding"
    add("--compile", action="store_true", help=text)
    text = "recompute G's residual blocks in the backward pass: much less memory for large images, 25%% slower"
    add("--checkpoint_blocks", action="store_true", help=text)
    text = "with --compile on an NVIDIA GPU: replay CUDA graphs, which is faster for small networks and batches"
    add("--cuda_graphs", action="store_true", help=text)
    text = "TF32 matrix products on NVIDIA GPUs: faster, with 10 bits of mantissa, as in PyTorch's convolutions"
    add("--tf32", action="store_true", help=text)
    add("--no_tf32", action="store_true", help="no TF32 on NVIDIA GPUs, not even in convolutions: slower, full float32")
    text = "deterministic kernels only: repeated and resumed runs are bit-identical on GPUs too, but slower"
    add("--deterministic", action="store_true", help=text)
    text = "CPU threads of a step; 0 = OMP_NUM_THREADS, or measured at the start and when steps slow down, not with "
    text += "--compile or torchrun. Results differ by rounding: choose a number for runs that repeat bit-identically"
    add("--cpu_threads", type=values.non_negative_int, default=0, help=text)


def add_lr_flags(parser: ArgumentParser) -> None:
    """The optimizer and its schedule."""
    add = parser.add_argument_group("learning rate").add_argument
    policy = (
        "linear: to 0 in --n_epochs_decay; step: times 0.1 every --lr_decay_iters; plateau: times 0.2 when G's loss "
    )
    policy += "stops falling; cosine: to 0 over the whole run"
    add("--lr", type=values.positive_float, default=0.0002, help="initial learning rate of Adam")
    add("--lr_G", type=values.positive_float, help="of the generators; default: --lr")
    add("--lr_D", type=values.positive_float, help="of the discriminators; default: --lr")
    add("--beta1", type=values.fraction, default=0.5, help="decay of Adam's first moment")
    add("--beta2", type=values.fraction, default=0.999, help="decay of Adam's second moment")
    add("--lr_policy", default="linear", choices=LR_POLICIES, help=policy)
    add("--lr_decay_iters", type=values.positive_int, default=50, help="epochs between steps of --lr_policy step")


def add_saving_flags(parser: ArgumentParser) -> None:
    """How often checkpoints are written."""
    add = parser.add_argument_group("saving").add_argument
    add(
        "--save_latest_freq",
        type=values.non_negative_int,
        default=5000,
        help="images between checkpoints of latest; 0 = only those of --save_epoch_freq",
    )
    add(
        "--save_epoch_freq",
        type=values.positive_int,
        default=5,
        help="epochs between checkpoints: one that is kept, and latest",
    )
    add("--save_by_iter", action="store_true", help="keep the checkpoints of --save_latest_freq too, as iter_IMAGES")


def add_display_flags(parser: ArgumentParser) -> None:
    """Where a run is displayed, and how often."""
    add = parser.add_argument_group("display").add_argument
    add("--print_freq", type=values.non_negative_int, default=100, help="images between two lines of losses; 0 = none")
    add(
        "--update_html_freq",
        type=values.non_negative_int,
        default=1000,
        help="images between updates of the page; 0 = at the end of each epoch only",
    )
    add("--no_html", action="store_true", help="no page at CHECKPOINTS_DIR/NAME/web/index.html")
    add(
        "--display_freq",
        type=values.non_negative_int,
        default=400,
        help="images between updates in visdom, TensorBoard and Weights & Biases",
    )
    add(
        "--health_freq",
        type=values.non_negative_int,
        default=200,
        help="images between health checks, see docs/health.md; 0 = never",
    )
    add("--display_id", type=values.whole_number, default=1, help="window id in visdom; 0 or less = no visdom")
    add(
        "--display_ncols",
        type=values.non_negative_int,
        default=4,
        help="images per row in visdom; 0 = a window for each",
    )
    add("--display_server", default="http://localhost", help="address of the visdom server")
    add("--display_port", type=values.port, default=8097, help="port of the visdom server")
    add("--display_env", default="main", help="environment in visdom")
    text = "write to CHECKPOINTS_DIR/NAME/tensorboard (pip install tensorboard)"
    add("--use_tensorboard", action="store_true", help=text)


def add_evaluation_flags(parser: ArgumentParser) -> None:
    """When --metrics are computed, on what, and which checkpoint they keep."""
    add = parser.add_argument_group("metrics in training").add_argument
    text = "images between two evaluations of --metrics, and one at the end; 0 = at the end only"
    add("--metrics_freq", type=values.non_negative_int, default=5000, help=text)
    text = "held-out images to measure: of valA and valB, or val for pairs in one file; without these, of test"
    add("--metrics_images", type=values.positive_int, default=500, help=text)
    text = "keep the checkpoint with the best value of this metric, such as kid, for --epoch best; default: off"
    add("--best", default="", metavar="METRIC", help=text)


def nothing_left(opt: Options, done: int) -> str:
    """The message for a run that is asked for no more than its `done` epochs, or whose time is over."""
    if done < opt.n_epochs + opt.n_epochs_decay:
        return f"nothing left to do: the {opt.train_minutes:g} minutes of --train_minutes are over"
    return (
        f"nothing left to do: {done} epochs are done, and --n_epochs {opt.n_epochs} with --n_epochs_decay "
        f"{opt.n_epochs_decay} asks for {opt.n_epochs + opt.n_epochs_decay}"
    )


def run_flags(opt: Options) -> str:
    """The flags that name the run to a script."""
    folder = f" --checkpoints_dir {shlex.quote(opt.checkpoints_dir)}" if opt.given("checkpoints_dir") else ""
    return f"--name {shlex.quote(opt.name)}{folder}"
