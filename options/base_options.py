"""The flags that train.py and test.py share, the three passes of parsing, and the read-only result."""

import argparse
import json
import math
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

from options import values
from options.choices import (
    DEVICES,
    DIRECTIONS,
    DISCRIMINATORS,
    FEATURE_DISCRIMINATORS,
    FEATURES,
    GENERATORS,
    IMAGE_DISCRIMINATORS,
    INIT_TYPES,
    METRICS,
    NOISE_GENERATORS,
    NORMS,
    PREPROCESS,
    RESAMPLINGS,
)
from options.parser import RENAMED, Parser
from util.files import atomic
from util.paths import BUNDLED
from util.registry import choices, find_class

BUNDLED_MARK = "bundled:"  # prefix of a folder in datasets/


class Options:
    """The value of every flag, as an attribute; read-only."""

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        given: Iterable[str],
        inherited: Iterable[str],
        defaults: Mapping[str, Any],
        name: str,
    ):
        self.__dict__.update(
            _values=dict(values), _given=frozenset(given), _inherited=frozenset(inherited), _defaults=dict(defaults),
            _name=name,
        )  # fmt: skip

    def __getattr__(self, flag: str) -> Any:
        try:
            return self.__dict__["_values"][flag]
        except KeyError:
            raise AttributeError(f"no option --{flag}") from None

    def __setattr__(self, flag: str, value: object) -> NoReturn:
        raise AttributeError(f"options are read-only: --{flag} cannot become {value!r}")

    def __delattr__(self, flag: str) -> NoReturn:
        raise AttributeError(f"options are read-only: --{flag} cannot be deleted")

    def __str__(self) -> str:
        """One flag a line, in upstream's layout, with the default where it differs."""
        lines = ["----------------- Options ---------------"]
        for flag, value in sorted(self._values.items()):
            default = self._defaults[flag]
            comment = "" if value == default else f"\t[default: {default}]"
            lines.append(f"{flag:>25}: {value!s:<30}{comment}")
        return "\n".join([*lines, "----------------- End -------------------"])

    @property
    def is_train(self) -> bool:
        """Whether these are the options of train.py."""
        return bool(self._name == "train")

    def given(self, flag: str) -> bool:
        """Whether the flag was on the command line (or in an @FILE there)."""
        assert flag in self._values, f"no option --{flag}"
        return flag in self._given

    def is_default(self, flag: str) -> bool:
        """Whether the value is the declared default: neither on the command line nor from the options of a run."""
        return not self.given(flag) and flag not in self._inherited

    def as_dict(self) -> dict[str, Any]:
        """A copy of all values: flag -> value."""
        return dict(self._values)

    def portable(self) -> dict[str, Any]:
        """All values as they are saved: with an absolute dataroot, or a mark for a bundled one, for other clones."""
        root = Path(self.dataroot).absolute()
        bundled = root.is_relative_to(BUNDLED)
        return self.as_dict() | {"dataroot": f"{BUNDLED_MARK}{root.relative_to(BUNDLED)}" if bundled else str(root)}

    def changed(self) -> dict[str, Any]:
        """The flags whose value is not the default: flag -> value. Values derived from other flags are left out."""
        return {
            flag: value
            for flag, value in self._values.items()
            if value != self._defaults[flag]
            and (flag in self._given or flag == "dataroot" or self._defaults[flag] is not None)
        }

    def replaced(self, **values: Any) -> "Options":
        """A copy with other values of some flags."""
        assert values.keys() <= self._values.keys()
        return Options(
            self._values | values, given=self._given, inherited=self._inherited, defaults=self._defaults,
            name=self._name,
        )  # fmt: skip

    def save(self, run_dir: Path) -> None:
        """Write train_opt.txt (upstream's layout) and train_opt.json, or test_opt, into the folder `run_dir`."""
        # 1e999 is how JSON can say infinity; Python's own `Infinity` is not JSON.
        texts = {flag: "1e999" if value == math.inf else json.dumps(value) for flag, value in self.portable().items()}
        lines = ",\n".join(f"  {json.dumps(flag)}: {text}" for flag, text in texts.items())
        contents = {"json": f"{{\n{lines}\n}}\n".encode(), "txt": f"{self}\n".encode(errors="surrogateescape")}
        for suffix, content in contents.items():
            with atomic(run_dir / f"{self._name}_opt.{suffix}") as path:
                path.write_bytes(content)


def read_saved(run_dir: Path) -> dict[str, Any]:
    """The options that a run in `run_dir` was trained with; empty where none are saved.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_dir / "train_opt.json"
    if not path.is_file():
        return {}
    try:
        return from_portable(dict(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore or remove it") from error


def from_portable(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `Options.portable` returned, with current names and the path of bundled images in this clone."""
    options, root = {RENAMED.get(flag, flag): value for flag, value in saved.items()}, str(saved.get("dataroot"))
    if root.startswith(BUNDLED_MARK):
        options["dataroot"] = str(BUNDLED / root.removeprefix(BUNDLED_MARK))
    return options


class BaseOptions:
    """Declares the shared flags; TrainOptions and TestOptions add theirs."""

    is_train: ClassVar[bool]
    description: ClassVar[str]  # above the flags in --help
    examples: ClassVar[tuple[str, ...]]  # below them: the flags of commands to copy
    own_flags: ClassVar[frozenset[str]]  # never inherited from the saved options of a run

    def initialize(self, parser: ArgumentParser) -> None:
        """Declare the shared flags."""
        add_run_flags(parser)
        add_data_flags(parser)
        add_network_flags(parser)
        add_metric_flags(parser)

    def parse(self, argv: Sequence[str] | None = None, saved: Mapping[str, object] = MappingProxyType({})) -> Options:
        """Parse the command line (`argv`, or the process's own). A mistake ends the process with status 2.

        Three passes: the shared flags name the model, its flags and defaults name the dataset, which adds its own. The
        options of a run, `saved`, replace the declared defaults, except for `own_flags`. Reads no file but those of
        @FILE, and touches no GPU.
        """
        parser = self._parser(argv, saved)
        text = "show this page; its last flags are those of --model and --dataset_mode"
        parser.add_argument("-h", "--help", action="help", help=text)
        given, unknown = parser.read(argv)
        if unknown:
            parser.refuse(unknown, self.models_with)
        for flag in given.keys() & parser.withdrawn.keys():
            parser.error(f"--{flag} is not an option of {parser.withdrawn[flag]}: omit it")
        defaults = parser.defaults()
        flags = defaults | given
        self.complete(flags, given, parser)
        flags["name"] = self.peek(argv)["name"]
        chosen = ["--model", flags["model"], "--dataset_mode", flags["dataset_mode"]]
        declared = self._parser(chosen, {}).defaults() if saved else defaults
        name = "train" if self.is_train else "test"
        return Options(flags, given=given, inherited=saved, defaults=declared, name=name)

    def models_with(self, flag: str) -> list[str]:
        """The names of the models that have a flag and can be trained."""
        models = [model for model in choices("models") if model != "test"]
        return [model for model in models if flag in self._parser(["--model", model], {}).defaults()]

    def peek(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """The flags from the command line or their defaults, unchecked: enough to find the saved options of a run.

        The name includes --suffix, filled in from these flags alone, under their old names too.
        """
        parser = self._parser(argv, {})
        flags = parser.defaults() | parser.read(argv)[0]
        if flags["suffix"]:
            old = {old: flags[new] for old, new in RENAMED.items() if new in flags}
            try:
                flags["name"] += "_" + flags["suffix"].format(**flags, **old)
            except (LookupError, ValueError, TypeError, AttributeError) as error:
                parser.error(f"--suffix {flags['suffix']}: braces can hold flags only, such as {{netG}} ({error})")
            if not values.is_plain_name(flags["name"]):
                parser.error(f"--suffix {flags['suffix']}: gives the name {flags['name']!r}; a name has no slashes")
        return flags

    def _parser(self, argv: Sequence[str] | None, saved: Mapping[str, object]) -> Parser:
        """All flags, with the defaults of model, dataset and saved options."""
        parser = Parser("train.py" if self.is_train else "test.py", self.description, self.examples)
        self.initialize(parser)
        inherited = {flag: value for flag, value in saved.items() if flag not in self.own_flags}
        parser.inherit(inherited)
        for package, flag in (("models", "model"), ("data", "dataset_mode")):
            given, _ = parser.read(argv)
            chosen = given.get(flag, parser.get_default(flag))
            if flag == "model" and chosen != inherited.get("model"):
                inherited.pop("dataset_mode", None)  # another model may need other data
                if self.is_train:  # and attention where the old one has none
                    inherited.pop("attn_G", None)
                    inherited.pop("attn_D", None)
            try:
                cls = find_class(package, chosen)
            except ValueError as error:
                parser.error(f"argument --{flag}: {error}")
            cls.modify_commandline_options(parser, self.is_train)
            parser.withdraw(cls.unused_flags, f"--{flag} {chosen}")
            if flag == "model" and not self.is_train and cls.test_dataset_mode:
                inherited["dataset_mode"] = cls.test_dataset_mode
            parser.inherit(inherited)
        return parser

    def complete(self, flags: dict[str, Any], given: Mapping[str, Any], parser: ArgumentParser) -> None:
        """Check flags against each other and fill in the values derived from others."""
        if flags["dataroot"] is None:
            parser.error(
                f"--dataroot is required: the folder of your images; none are bundled for --model {flags['model']}"
            )
        if flags["load_size"] is None:
            flags["load_size"] = flags["crop_size"]
        for own in ("value_range_A", "value_range_B"):
            if flags[own] is None or ("value_range" in given and own not in given):
                flags[own] = flags["value_range"]
        for own in ("label_A", "label_B"):
            if flags[own] == []:  # the classes of the run, if there is one
                flags[own] = parser.get_default(own) or []
        # A discriminator that learned from features would get too good a figure by the same features.
        if flags.get("metrics_features") == "lite0" and (flags["netD"] == "projected" or flags.get("lambda_projected")):
            if "metrics_features" in given:
                parser.error("--metrics_features lite0 judges a run that learns from the same features: take lite2")
            flags["metrics_features"] = "lite2"
        for flag in ("metrics_features", "metrics_weights"):
            if flag in given and not flags["metrics"]:
                parser.error(f"--{flag} {flags[flag]} needs metrics that read it: add --metrics kid")
        if "content" not in flags["metrics"]:
            if given.get("label_dir"):
                parser.error(
                    f"--label_dir {flags['label_dir']} needs the metric that reads it: add content to --metrics"
                )
            if given.get("content") and "lambda_content" not in given and not flags.get("lambda_content"):
                loss = ", or set --lambda_content" if "lambda_content" in flags else ""
                parser.error(f"--content needs what reads its rules: add content to --metrics{loss}")
        cut = flags["preprocess"] in ("resize_and_crop", "scale_width_and_crop")
        if cut and flags["crop_size"] > flags["load_size"]:
            parser.error(f"--crop_size {flags['crop_size']} is larger than --load_size {flags['load_size']}")


def add_run_flags(parser: ArgumentParser) -> None:
    """The run: its name, model, folder, device."""
    add = parser.add_argument_group("run").add_argument
    add("--name", type=values.plain_name, default="experiment_name", help="name of the run and of its folder")
    add("--suffix", default="", help="added to the name; braces are filled in: {model}_{netG}_size{load_size}")
    models = f"models/MODEL_model.py: {', '.join(choices('models'))}"
    add("--model", type=values.class_name("models"), default="cycle_gan", help=models)
    add("--checkpoints_dir", default="./checkpoints", help="folder of all runs; weights go to CHECKPOINTS_DIR/NAME")
    text = "checkpoint to load, for testing and with --continue_train: latest, the number of an epoch, best (see "
    text += "--best), or old, the last checkpoint of a run that a new one of the same name has replaced"
    add("--epoch", type=values.plain_name, default="latest", help=text)
    text = "load the checkpoint that --save_by_iter kept after this many images; 0 = use --epoch"
    add("--load_iter", type=values.non_negative_int, default=0, help=text)
    add("--seed", type=values.seed, default=0, help="random seed of weights, order, augmentation and dropout")
    add("--device", default="auto", choices=DEVICES, help="auto = a GPU if there is one")
    add("--gpu_ids", type=values.gpu_ids, default="0", help="CUDA GPUs, such as 0,1: one per process; -1 = CPU")
    add("--display_winsize", type=values.positive_int, default=256, help="width of images on pages, in px")
    add("--verbose", action="store_true", help="print the layers of the networks, and tracebacks of errors")
    add("--use_wandb", action="store_true", help="log to Weights & Biases (pip install wandb)")
    add("--wandb_project_name", default="CycleGAN-and-pix2pix", help="project at Weights & Biases")


def add_data_flags(parser: ArgumentParser) -> None:
    """Which images, and how they are read."""
    add = parser.add_argument_group("data").add_argument
    text = "folder of images; with two domains, of trainA, trainB, testA, testB; default: bundled images, if the "
    text += "model has some"
    add("--dataroot", help=text)
    modes = f"data/DATASET_MODE_dataset.py: {', '.join(choices('data'))}"
    add("--dataset_mode", type=values.class_name("data"), default="unaligned", help=modes)
    add("--direction", default="AtoB", choices=DIRECTIONS, help="which domain is translated to which")
    text = "how images are resized. resize: to a square of LOAD_SIZE; scale_width: to a width of LOAD_SIZE, keeping "
    text += "the aspect ratio; crop: to a square of CROP_SIZE; none: sizes stay, in training rounded to multiples of 4"
    add("--preprocess", default="resize_and_crop", choices=PREPROCESS, help=text)
    text = "before that, crop a square of this size in px from the center; max = the largest square; 0 = off"
    add("--center_crop", type=values.center_crop, default=0, help=text)
    add("--load_size", type=values.positive_int, default=286, help="size before the crop, in px")
    add("--crop_size", type=values.positive_int, default=256, help="size of the crop, in px")
    add("--no_flip", action="store_true", help="no random horizontal flips in training")
    add("--serial_batches", action="store_true", help="take images in order, not at random")
    text = "values of files with more than 8 bits that become -1 and 1 (write =LOW,HIGH for a negative LOW); default: "
    text += "by dtype"
    add("--value_range", type=values.value_range, default="", metavar="LOW,HIGH", help=text)
    text = "the same for the images of {} alone, those of folders such as train{}; default: --value_range"
    add("--value_range_A", type=values.value_range, metavar="LOW,HIGH", help=text.format("A", "A"))
    add("--value_range_B", type=values.value_range, metavar="LOW,HIGH", help=text.format("B", "B"))
    text = "images of {0} are label maps: values, palette or RGB colors are classes, which are never blended. {1} then "
    text += "is the number of classes; default: the classes of the training images"
    for domain in "AB":
        which = text.format(domain, "--input_nc" if domain == "A" else "--output_nc")
        add(f"--label_{domain}", nargs="*", metavar="CLASS", help=which)
    text = "axis of NIfTI volumes along which slices are images: 0 = the first"
    add("--slice_axis", type=int, default=2, choices=(0, 1, 2), help=text)
    add("--max_dataset_size", type=values.count, default=math.inf, help="the first N images alone; inf = all")
    text = "skip unreadable images; every image is read once at the start to find them; test.py then ends with "
    text += "status 3"
    add("--skip_bad_images", action="store_true", help=text)
    add("--batch_size", type=values.positive_int, default=1, help="images per step, in each process")
    text = "data loader workers; unless given, at most one per core, and none on a CPU"
    add("--num_threads", type=values.non_negative_int, default=4, help=text)


def add_network_flags(parser: ArgumentParser) -> None:
    """The architecture of generators (G) and discriminators (D)."""
    add = parser.add_argument_group("network").add_argument
    add("--input_nc", type=values.positive_int, default=3, help="channels of input images: 3 = color, 1 = gray")
    add("--output_nc", type=values.positive_int, default=3, help="channels of output images: 3 = color, 1 = gray")
    generators = [*GENERATORS, *NOISE_GENERATORS]
    discriminators = [*DISCRIMINATORS, *FEATURE_DISCRIMINATORS, *IMAGE_DISCRIMINATORS]
    text = "generator; sagan, sagan_resnet and biggan: from noise"
    add("--netG", default="resnet_9blocks", choices=generators, help=text)
    text = "discriminator; basic = n_layers with 3; projected = small heads on frozen ImageNet features"
    add("--netD", default="basic", choices=discriminators, help=text)
    add("--ngf", type=values.positive_int, default=64, help="channels of G's first layer")
    add("--ndf", type=values.positive_int, default=64, help="channels of D's first layer")
    add("--n_layers_D", type=values.positive_int, default=3, help="downsampling layers of --netD n_layers")
    text = "normalization in G and D; syncbatch: batch over the images of all processes of torchrun"
    add("--norm", default="instance", choices=NORMS, help=text)
    add("--no_dropout", action="store_true", help="no dropout in G")
    text = "how G doubles the resolution: deconv = transposed convolution; nearest = resize, then convolve, without "
    text += "checkerboard artifacts; blur = bilinear, and G and D blur before they halve it, as in CUT: slower"
    add("--resample", default="deconv", choices=RESAMPLINGS, help=text)
    stages = "stages of {} followed by self-attention: {}. Separated by commas, or none"
    noise = "sagan's: l1 ..., sagan_resnet's and biggan's: block1 ..."
    resnet = f"down1, down2, block1 ..., bottleneck (the middle), up1, up2; {noise}"
    add("--attn_G", default="none", help=stages.format("G", resnet))
    patchgan = f"layer1, layer2 ..., bottleneck (stride 8); {noise}"
    add("--attn_D", default="none", help=stages.format("D", patchgan))
    text = "end PatchGANs with a head that sees how much images differ, also from this many earlier ones; 0 = off"
    add("--batch_head", type=values.non_negative_int, default=0, help=f"{text}; UVCGAN2 has 3")
    switch = argparse.BooleanOptionalAction
    add("--spectral_norm_G", action=switch, default=False, help="spectral normalization in G")
    add("--spectral_norm_D", action=switch, default=False, help="spectral normalization in D")
    add("--init_type", default="normal", choices=INIT_TYPES, help="initial weights")
    add("--init_gain", type=values.positive_float, default=0.02, help="scale of initial weights; not used by kaiming")


def add_metric_flags(parser: ArgumentParser) -> None:
    """What is measured, in training and in testing; docs/metrics.md says what each figure tells."""
    add = parser.add_argument_group("metrics").add_argument
    text = f"what to measure on held-out images, separated by commas: {', '.join(METRICS)}; default: nothing"
    add("--metrics", type=values.metrics, default=[], help=text)
    text = "EfficientNet-Lite0 or Lite2: the features that kid, fid and precision_recall compare"
    add("--metrics_features", default="lite0", choices=FEATURES, help=text)
    text = "Inception weights for these metrics instead, as published: the file of torch-fidelity"
    add("--metrics_weights", default="", help=text)
    text = "classes of pixels that content compares, such as 'sea: A(B > R + 35); B(B > R - 20)'; default: "
    text += "edges and gray values"
    add("--content", nargs="+", type=values.rule, default=[], metavar="RULE", help=text)
    text = "folders of label maps, by the names of the images: content finds their classes in translations by color "
    text += "and texture"
    add("--label_dir", type=values.label_dir, default="", metavar="A=FOLDER,B=FOLDER", help=text)
