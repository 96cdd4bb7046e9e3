"""SAGAN: images generated from noise, of a class if there are classes."""

import argparse
import itertools
from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.base_dataset import BaseDataset
from models import networks
from models.augment import DiffAugment
from models.base_model import (
    AttentionView,
    BaseModel,
    GeneratorView,
    Images,
    Losses,
    Optimization,
    average_losses,
)
from models.losses import ClassDiscriminator, Scorer, add_gan_flags, create_gan_loss
from models.networks.layers import evaluating
from models.projected_loss import add_projected_flag, create_projected_loss
from options import values
from util.errors import RemediedError
from util.images import grid
from util.paths import BUNDLED

SAMPLES = 64  # in a grid, at most
FRAMES = 8  # of an interpolation between two samples


class SAGANModel(BaseModel):
    """Self-attention GAN: hinge loss, spectral normalization in both networks, two learning rates.

    With classes, batch norm in netG has a scale and a shift for each class, and netD has a score for each class.

    Reference: Zhang et al. 2019, https://arxiv.org/abs/1805.08318; Heusel et al. 2017 (two time-scale update rule),
    arXiv:1706.08500; Miyato and Koyama 2018 (classes), arXiv:1802.05637.
    """

    results_title = "samples"
    test_dataset_mode = "noise"
    unused_flags = (
        "norm", "no_dropout", "n_layers_D", "batch_head", "output_nc", "pool_size", "checkpoint_blocks",
        "tile", "tile_overlap", "label_A", "label_B",
    )  # fmt: skip

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags of noise and discriminator steps; by default SAGAN at 64 pixels on the bundled cats."""
        parser.set_defaults(
            dataroot=str(BUNDLED / "cats"), dataset_mode="single", load_size=None, crop_size=64,
            center_crop="max", netG="sagan", netD="sagan", attn_G="default", attn_D="default", spectral_norm_G=True,
            spectral_norm_D=True, init_type="orthogonal", init_gain=1.0,
        )  # fmt: skip
        add_projected_flag(parser)
        add = parser.add_argument_group("sagan").add_argument
        add("--z_dim", type=values.positive_int, default=128, help="length of the noise vectors")
        text = "D also sees how much the images of a batch differ, which keeps G's images diverse"
        add("--minibatch_std", action=argparse.BooleanOptionalAction, default=False, help=text)
        text = "class of each image: folder, for the folder it lies in, or a regular expression with one group, to be "
        text += "found in the file name, such as '^(cat|dog)'; default: no classes"
        add("--class_of", type=values.class_rule, default="", metavar="folder|REGEX", help=text)
        text = "names of all classes in their order; default: those that --class_of finds"
        add("--class_names", nargs="+", default=[], metavar="NAME", help=text)
        if is_train:
            add_gan_flags(parser)
            parser.set_defaults(
                gan_mode="hinge", lr_G=1e-4, lr_D=4e-4, beta1=0.0, beta2=0.9, batch_size=64, ema_decay=0.999,
                print_freq=1000, display_freq=5000, update_html_freq=5000, health_freq=1000,
                display_winsize=512,
            )  # fmt: skip
            add("--d_steps", type=values.positive_int, default=1, help="updates of D per step, each with new fakes")
            text = "augment all images that D sees, for small datasets: color,translation,cutout or some of them"
            add("--diffaugment", default="none", help=text)
        else:
            parser.set_defaults(eval=True)
            text = "write the image of each seed, and nothing else, to RESULTS_DIR/NAME/samples_EPOCH"
            add("--samples_only", action="store_true", help=text)
            text = "classes to make images of, by name or number from 0, as cat,dog or 3,7; default: all"
            add("--classes", default="", help=text)
            text = "file of a generator instead of a run, as scripts.export --format safetensors writes it; "
            text += "stem = --name"
            add("--weights", default="", help=text)
        return parser

    def __init__(self, opt: Any) -> None:
        super().__init__()
        if opt.is_train and opt.class_of and not opt.class_names:
            raise ValueError(f"--class_of needs --dataset_mode single, which finds classes, not {opt.dataset_mode}")
        if opt.is_train and opt.class_names and not opt.class_of:
            raise ValueError("--class_names needs --class_of, which finds the classes of images: add it")
        self.image_size = opt.crop_size
        self.netG = networks.define_noise_G(opt, opt.input_nc)

    def add_discriminators(self, opt: Any) -> None:
        """Build netD, which gives each image one score."""
        self.netD = networks.define_image_D(opt, opt.input_nc).to(self.device)

    def prepare_training(self, opt: Any, optimization: Optimization) -> None:
        """Build discriminator, loss, augmentation and the fixed noise of `preview`, and add optimizers."""
        super().prepare_training(opt, optimization)
        self.batch_size, self.d_steps = opt.batch_size, opt.d_steps
        self.add_discriminators(opt)
        self.gan_loss = create_gan_loss(opt)
        with networks.from_flags(opt, "diffaugment"):
            self.augment = DiffAugment(networks.stages(opt.diffaugment))
        discriminators: list[nn.Module] = [self.netD]
        self.projected = None
        if opt.lambda_projected:
            self.projected = create_projected_loss(opt, self, "netP", opt.input_nc, augment=self.augment)
            discriminators.append(self.projected.net)
        optimization.add("G", [self.netG], lr=opt.lr_G)
        optimization.add("D", discriminators, lr=opt.lr_D)
        optimization.add_averages(self, "netG")
        generator = torch.Generator().manual_seed(opt.seed)
        fixed_noise = torch.randn(SAMPLES, self.netG.z_dim, generator=generator).to(self.device)
        self.fixed_noise = self.with_classes(fixed_noise, torch.arange(SAMPLES, device=self.device))

    def real(self, batch: dict) -> list[Tensor]:
        """The real images of a batch, (B, C, S, S), and the numbers of their classes, (B,), if there are any."""
        return self.inputs(batch, "A", *(["class"] if self.netG.n_classes else []))

    def noise(self, classes: Tensor | None = None) -> Tensor:
        """Draw noise z ~ N(0, 1): (batch_size, z_dim), followed by one-hot classes if their numbers are given."""
        z = torch.randn(self.batch_size, self.netG.z_dim, device=self.device)
        return z if classes is None else self.with_classes(z, classes)

    def with_classes(self, z: Tensor, classes: Tensor) -> Tensor:
        """Append classes to noise (B, z_dim), by their numbers (B,), modulo n_classes; none if the model has none."""
        count = self.netG.n_classes
        return torch.cat([z, F.one_hot(classes % count, count).to(z.dtype)], 1) if count else z

    def draw_classes(self, real: Tensor | None) -> Tensor | None:
        """Classes of fake images, (batch_size,), drawn from those of real ones, (B,), so that shares are the same.

        A relativistic loss compares image i of both, which then has the class of real image i. Scores of different
        classes would say nothing on which of the two is real.
        """
        if real is None:
            return None
        if self.gan_loss.mode == "relativistic":
            return real[torch.arange(self.batch_size, device=real.device) % len(real)]
        return real[torch.randint(len(real), (self.batch_size,), device=real.device)]

    def augmented_scores(self, images: Tensor) -> Tensor:
        """Augment images (B, C, S, S) and return the scores (B,), or (B, n_classes), of the discriminator."""
        return self.netD(self.augment(images))

    def scorer(self, real: Tensor | None, fake: Tensor | None) -> Scorer:
        """The discriminator for a loss. If there are classes, it scores images for theirs, (B,) each."""
        if real is None or fake is None:
            return self.augmented_scores
        return ClassDiscriminator(self.augmented_scores, {"real": real, "fake": fake})

    def forward(self, batch: dict) -> Images:
        """Generate images (B, C, S, S) in [-1, 1] from the noise "z" of a batch, (B, z_dim + n_classes)."""
        (z,) = self.inputs(batch, "z")
        return {"sample": self.netG(z)}

    def measured(self, batch: dict, *, cycle: bool) -> Images:
        """See BaseModel: the samples that test.py makes of the seeds "index" and classes of real images; and these."""
        real, *classes = self.real(batch)
        seeded = [torch.Generator().manual_seed(seed) for seed in batch["index"]]
        z = torch.stack([torch.randn(self.netG.z_dim, generator=generator) for generator in seeded])
        z = z.to(self.device)
        if classes:
            z = self.with_classes(z, classes[0])
        return {"fake_B": self.netG(z), "real_B": real}

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """Update the discriminator d_steps times on the same real images, then the generator, always with new noise."""
        micro_batches: list[tuple[float, Tensor, Tensor | None]] = []
        for micro in self.micro_batches(batch):
            real, *found = self.real(micro.batch)
            micro_batches.append((micro.share, real, found[0] if found else None))
        for _ in range(self.d_steps):
            losses_D = []
            for share, real, classes in micro_batches:
                with self.optimization.autocast():
                    with torch.no_grad():
                        wanted = self.draw_classes(classes)
                        fake = self.netG(self.noise(wanted))
                    # Batch norm in G needs a whole batch, but the last batch of an epoch may have fewer real images.
                    terms = self.gan_loss.discriminator(
                        self.scorer(classes, wanted), real, fake[: len(real)], step=self.optimization.updates,
                        progress=self.optimization.progress,
                    )  # fmt: skip
                    losses, logged = [self.gan_loss.total(terms)], self.gan_loss.logged(terms)
                    if self.projected:
                        loss = self.projected.discriminator(real, fake)
                        losses.append(loss)
                        logged["projected_D"] = loss.detach()
                self.optimization.backward("D", *losses, share=share)
                losses_D.append((share, logged))
            self.optimization.update("D")
        losses_G: list[tuple[float, Losses]] = []
        for share, real, classes in micro_batches:
            with self.optimization.autocast():
                wanted = self.draw_classes(classes)
                fake = self.netG(self.noise(wanted))
                terms = {"G": self.gan_loss.generator(self.scorer(classes, wanted), real, fake)}
                if self.projected:
                    terms["projected"] = self.projected.generator(real, fake)
            self.optimization.backward("G", *terms.values(), share=share)
            losses_G.append((share, {name: term.detach() for name, term in terms.items()}))
        self.optimization.update("G")
        self.optimization.end_step()
        return average_losses(losses_G) | average_losses(losses_D) | self.gammas(), {"fake": fake, "real": real}

    def example_input(self, name: str, size: tuple[int, int], *, batch_size: int = 1) -> Tensor | None:
        """See BaseModel; the generator takes noise, (batch_size, z_dim + n_classes)."""
        if name.startswith("netG"):
            return torch.zeros(batch_size, self.netG.z_dim + self.netG.n_classes)
        return super().example_input(name, size, batch_size=batch_size)

    def check_sizes(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Raise ValueError if images have another size than the networks were built for."""
        wanted = self.image_size, self.image_size
        for size in set(sizes) - {wanted}:
            raise RemediedError(
                f"images have {size[0]}x{size[1]} pixels after preprocessing, but sagan was built for "
                f"{self.image_size}x{self.image_size}.",
                remedy={"preprocess": "resize_and_crop", "crop_size": self.image_size},
            )

    @torch.no_grad()
    def preview(self, images: Images) -> Images:
        """Return a grid of samples from the fixed noise, the first sample, and a grid of real images."""
        net = self.sampler()
        with evaluating(net), self.optimization.autocast():
            samples = net(self.fixed_noise)
        figures = {"samples": grid(samples), "sample": samples[0], "real": grid(images["real"][:SAMPLES])}
        return {label: figure[None] for label, figure in figures.items()}

    def sampler(self) -> nn.Module:
        """The generator for samples: the averaged one, if there is one."""
        return getattr(self, "netG_ema", self.netG)

    @torch.no_grad()
    def overview(self, dataset: BaseDataset) -> Images:
        """Return a grid of up to 64 samples, and one of interpolations between the noise of successive seeds.

        With classes, the interpolations are of the first class, and there are two more figures: a row of samples for
        each class, and interpolations between successive classes for the first seed.
        """
        first = [dataset[0, index] for index in range(min(SAMPLES, len(dataset)))]
        inputs = torch.stack([z for sample in first for z in self.inputs(sample, "z")])
        figures = {"samples": grid(self.netG(inputs))}
        noise, classes = inputs.split([self.netG.z_dim, self.netG.n_classes], 1)
        if self.netG.n_classes:
            numbers = list(dict.fromkeys(classes.argmax(1).tolist()))
            noise, names = noise[:: len(numbers)], [dataset.class_names[number] for number in numbers]
            one_hot = torch.eye(self.netG.n_classes, device=self.device)[numbers]
            columns = noise[:FRAMES]
            rows = [torch.cat([columns, kind.expand(len(columns), -1)], 1) for kind in one_hot]
            figures[f"classes: {', '.join(names)}"] = grid(self.netG(torch.cat(rows)), len(columns))
            if len(numbers) > 1:
                t = torch.linspace(0, 1, FRAMES, device=self.device)[:, None]
                mixed = torch.cat([torch.lerp(start, end, t) for start, end in itertools.pairwise(one_hot[:5])])
                strip = torch.cat([noise[:1].expand(len(mixed), -1), mixed], 1)
                figures["interpolation between classes"] = grid(self.netG(strip), FRAMES)
        if len(noise) > 1:
            strips = torch.cat([interpolate(start, end, FRAMES) for start, end in itertools.pairwise(noise[:5])])
            strips = torch.cat([strips, classes[:1].expand(len(strips), -1)], 1)
            figures["interpolation"] = grid(self.netG(strips), FRAMES)
        return figures

    def attention_views(self) -> dict[str, AttentionView]:
        """Show the generator on the noise of the sample of `preview`, and the discriminator on that sample."""
        views = {"G": AttentionView(self.sampler(), "sample", lambda _: self.fixed_noise[:1])}
        if hasattr(self, "netD"):
            views["D"] = AttentionView.on(self.netD, "sample")
        return views

    def generator_views(self) -> dict[str, GeneratorView]:
        """The generator, with its discriminator, which sees these images without augmentation, for the best class."""

        def score(images: Images, label: str) -> Tensor:
            scores = self.netD(images[label])
            return scores.amax(1) if self.netG.n_classes else scores

        return {"G": GeneratorView("fake", "real", score=score)}


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Interpolate between noise vectors `start` and `end`, both (z_dim,), on a sphere: (steps, z_dim), ends included.

    A straight line would contain much shorter vectors than the generator was trained on.

    Reference: White 2016, Sampling Generative Networks, arXiv:1609.04468.
    """
    cosine = torch.cosine_similarity(start, end, dim=0)
    angle = torch.acos(cosine.clamp(-1, 1))
    t = torch.linspace(0, 1, steps, device=start.device)[:, None]
    if angle.sin() < 1e-4:  # equal directions; between opposite ones there is no unique arc
        return torch.lerp(start, end, t)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / angle.sin()
