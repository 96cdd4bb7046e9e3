"""The checks of `training.health`: small functions from what was seen of a run to a figure, each with a threshold."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Adam moves a weight by about the learning rate per step: after 500 steps at 0.0002 by 0.1, five times the spread of
# initial weights. Before, a network still shows how it was initialized.
WARM_UP = 500  # steps
LOOKS = 8  # their median ignores single odd images and steps

FLAT = 0.2  # of the contrast of real images
UNUSED = 0.01  # gamma
COPIED = 0.02  # of the range from -1 to 1: 2.5 of 255 gray levels, which nobody sees

GROUP = 3  # values of a loss that are compared as one, since the losses of single steps vary
SWINGS = 4  # up and down twice
GRIDS = (2, 4, 8)  # periods in pixels: of one, two and three upsamplings by 2
NEIGHBORS = (-4, -3, -2, 2, 3, 4)  # frequencies to compare with: near, but not touched by a peak between two of them
CLIPPED = 0.99  # beyond this, a value of [-1, 1] is written as 0, 1, 254 or 255
REJECTED = 0.75  # accuracy of a discriminator that clearly rejects: halfway from chance to certainty
FEW = 8  # images, too few to speak of diversity
ALIKE = 1e-3  # distance of thumbnails that are the same but for rounding
CERTAIN = 0.98  # accuracy of a discriminator that hardly ever errs

# ---- what a check sees


@dataclass(frozen=True)
class Scores:
    """What a discriminator says about real and generated images.

    Attributes:
        real: logits of real images, of any shape.
        fake: logits of generated images, of any shape.
        gradient: of the mean logit of each generated image with respect to its values, (B, C, H, W).
    """

    real: Tensor
    fake: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Cycle:
    """Images (B, C, H, W) in [-1, 1] and their reconstructions, all made in eval mode.

    Attributes:
        source: the input of the first generator.
        blurred: `degraded(source)`.
        rec: what the second generator makes of the translation.
        rec_of_degraded: what it makes of `degraded(translation)`.
    """

    source: Tensor
    blurred: Tensor
    rec: Tensor
    rec_of_degraded: Tensor


@dataclass(frozen=True)
class Look:
    """What a generator made in one step: images (B, C, H, W) in [-1, 1].

    Attributes:
        fake: the images.
        real: real images of the same domain; for paired data, the truth of `fake`.
        fakes: thumbnails (N, D) of `fake` and of the images of some earlier looks.
        reals: thumbnails (N, D) of `real` and of earlier ones.
        source: the input, if it shows the same kind of values.
        sources: thumbnails (N, D) of `source` and of earlier ones.
        paired: whether `real` is the truth.
        scores: of its discriminator, if it has one.
        cycle: there and back, if there is a generator back.
    """

    fake: Tensor
    real: Tensor
    fakes: Tensor
    reals: Tensor
    source: Tensor | None = None
    sources: Tensor | None = None
    paired: bool = False
    scores: Scores | None = None
    cycle: Cycle | None = None


@dataclass(frozen=True)
class LossSeries:
    """The last values of a loss, one per look."""

    values: Sequence[float]


@dataclass(frozen=True)
class Attention:
    """An attention block: `gamma`, and `uniformity`, its mean entropy as a fraction of that of uniform attention."""

    gamma: float
    uniformity: float


@dataclass(frozen=True)
class LossScale:
    """The factor of fp16 losses at two looks, and the steps between them."""

    before: float
    now: float
    steps: int


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the steps since the last look, and of the waiting for the loader between them."""

    steps: float
    waiting: float


@dataclass(frozen=True)
class Content:
    """How well images keep the content of their input, and how well the untranslated input scores in the same way."""

    kept: float
    untranslated: float


# ---- images


def thumbnails(images: Tensor) -> Tensor:
    """8 x 8 averages of images (B, C, H, W), flattened: (B, 64 C). Of any two images, the distance is meaningful."""
    return F.adaptive_avg_pool2d(images.float(), 8).flatten(1)


def degraded(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] as a file and a careful viewer leave them: in 8 bits, slightly blurred."""
    from torchvision.transforms.v2.functional import gaussian_blur  # slow to import

    levels = ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return gaussian_blur(levels, [3, 3], [0.5, 0.5])


def contrast(images: Tensor) -> float:
    """Mean standard deviation of the values of an image (B, C, H, W)."""
    return images.flatten(1).std(1).mean().item()


def clipped(images: Tensor) -> float:
    """Share of the values of images in [-1, 1] that are at one of the ends."""
    return (images.abs() > CLIPPED).float().mean().item()


def difference(images: Tensor, others: Tensor) -> float:
    """Mean absolute difference of two batches of images."""
    return (images - others).abs().mean().item()


def gray_correlation(images: Tensor, others: Tensor) -> float:
    """Mean correlation of the gray values of image i (B, C, H, W) of both batches."""
    gray, other = (x.mean(1).flatten(1) for x in (images, others))
    gray, other = (x - x.mean(1, keepdim=True) for x in (gray, other))
    return F.cosine_similarity(gray, other).mean().item()


def grid_energy(images: Tensor) -> tuple[Tensor, Tensor]:
    """The energy of the spectrum of images (B, C, H, W) at the frequencies of GRIDS, and the mean beside each.

    An upsampling that treats even and odd pixels differently leaves a grid, which is a peak at one of them. Natural
    spectra are smooth.

    Returns:
        Two tensors (frequencies,), empty if no period divides the sides.

    Reference: Odena et al. 2016, Deconvolution and Checkerboard Artifacts, https://doi.org/10.23915/distill.00003.
    """
    power = torch.fft.fft2(images.float().mean(1), norm="ortho").abs().square().mean(0)
    height, width = power.shape
    peaks, beside = [], []
    for period in GRIDS:
        if height % period == 0 and width % period == 0 and min(height, width) >= 4 * period:
            row, column = height // period, width // period
            for v, u in ((0, column), (row, 0), (row, column)):
                near = [power[(v + by * bool(v)) % height, (u + by * bool(u)) % width] for by in NEIGHBORS]
                peaks.append(power[v, u])
                beside.append(torch.stack(near).mean())
    return torch.tensor(peaks), torch.tensor(beside)


def nearest_distance(points: Tensor) -> float:
    """Mean distance of points (N, D) to their nearest neighbor."""
    distances = torch.cdist(points, points)
    return distances.fill_diagonal_(math.inf).amin(1).mean().item()


# ---- checks: None is "does not apply"


def accuracy(scores: Scores) -> float:
    """Share of the pairs of a real and a generated logit in which the real one is higher; ties count half.

    It is the area under the ROC curve: 0.5 is chance, and no adversarial loss needs another threshold.
    """
    real, fake = (logits.flatten().float() for logits in (scores.real, scores.fake))
    ordered = fake.sort().values
    lower = torch.searchsorted(ordered, real) + torch.searchsorted(ordered, real, right=True)
    return lower.float().mean().item() / (2 * len(ordered))


def way_to_real(look: Look) -> float | None:
    """How much each value would have to change for a discriminator that hardly ever errs to be convinced.

    The change is along the gradient that the generator gets, to first order, as the root mean square over an image. 0
    if the discriminator errs.
    """
    if look.scores is None or accuracy(look.scores) < CERTAIN:
        return None if look.scores is None else 0.0
    gap = (look.scores.real.float().mean() - look.scores.fake.float().mean()).item()
    slopes = look.scores.gradient.float().flatten(1).norm(dim=1)
    return gap / max(slopes.mean().item() * math.sqrt(look.fake[0].numel()), 1e-9)


def discriminator_accuracy(look: Look) -> float | None:
    """`accuracy` of the discriminator."""
    return None if look.scores is None else accuracy(look.scores)


def swing(losses: LossSeries) -> float | None:
    """The factor by which a loss rises and falls beyond its noise, in the weakest of its SWINGS strongest swings.

    A swing goes from a group of values to a later one, and its factor is that between their closest values. 0 if there
    are fewer swings; None for a loss that can be negative, which has no factors.
    """
    values = losses.values
    if min(values, default=0) <= 0:
        return None
    groups = [sorted(values[start : start + GROUP]) for start in range(0, len(values) - GROUP + 1, GROUP)]
    turns = groups[:1]
    for group in groups[1:]:
        if len(turns) > 1 and (sum(group) > sum(turns[-1])) == (sum(turns[-1]) > sum(turns[-2])):
            turns[-1] = group  # on in the same direction
        else:
            turns.append(group)
    factors = sorted(max(a[0] / b[-1], b[0] / a[-1]) for a, b in itertools.pairwise(turns))
    return factors[-SWINGS] if len(factors) >= SWINGS else 0.0


def diversity(look: Look) -> float | None:
    """Distance of generated images to their nearest neighbor, relative to that of real images, or of the input.

    The less diverse of these two counts: equal inputs have equal translations. None for few images, or for flat ones,
    which are alike too: another check is about them.
    """
    if len(look.reals) < FEW or relative_contrast(look) < FLAT:
        return None
    others = [nearest_distance(points) for points in (look.reals, look.sources) if points is not None]
    return nearest_distance(look.fakes) / min(others) if min(others) > ALIKE else None


def change(look: Look) -> float | None:
    """Mean absolute difference of images from their input; 2, the maximum, if a copy may be right.

    It is where the truth is as close, or where the discriminator, the only judge of unpaired images, has no objection.
    """
    if look.source is None or look.source.shape != look.fake.shape:
        return None
    if look.paired and difference(look.real, look.source) < 2 * COPIED:
        return 2.0
    if not look.paired and (look.scores is None or accuracy(look.scores) < REJECTED):
        return 2.0
    return difference(look.fake, look.source)


def correlation(look: Look) -> float | None:
    """Correlation of the gray values of images and their input; at least 0 where that of the truth is negative."""
    if look.source is None:
        return None
    found = gray_correlation(look.fake, look.source)
    right = look.paired and gray_correlation(look.real, look.source) < 0
    return max(found, 0.0) if right else found


def content_kept(content: Content) -> float:
    """Content kept by translation, minus that of the untranslated input."""
    return content.kept - content.untranslated


def grid_strength(look: Look) -> float | None:
    """The energy of a grid, relative to its neighbors and to real images there: what is there anyway hides a grid."""
    peaks, beside = grid_energy(look.fake)
    real_peaks, real_beside = grid_energy(look.real)
    if not len(peaks) or len(peaks) != len(real_peaks):
        return None
    usual = torch.stack([beside, real_peaks, real_beside]).amax(0)
    return (peaks / usual.clamp(min=1e-6)).max().item()


def clipping(look: Look) -> float:
    """Share of values at -1 or 1, minus that of real images."""
    return clipped(look.fake) - clipped(look.real)


def relative_contrast(look: Look) -> float:
    """Contrast, relative to that of real images."""
    return contrast(look.fake) / max(contrast(look.real), 1e-6)


def hidden_signal(look: Look) -> float | None:
    """Error of the reconstruction from a degraded translation, relative to what is to be expected.

    That is the error from the translation itself, and the detail that the same blur costs the input.

    Reference: Chu et al. 2017, CycleGAN, a Master of Steganography, https://arxiv.org/abs/1712.02950.
    """
    if look.cycle is None:
        return None
    cycle = look.cycle
    expected = difference(cycle.rec, cycle.source) + difference(cycle.blurred, cycle.source)
    return difference(cycle.rec_of_degraded, cycle.source) / max(expected, 1e-3)


def strength(block: Attention) -> float:
    """|gamma|, the factor of what attention adds to its input."""
    return abs(block.gamma)


def uniformity(block: Attention) -> float | None:
    """Entropy relative to uniform attention, where every position attends to all alike; None if it is unused."""
    return None if strength(block) <= UNUSED else block.uniformity


def skipped(scale: LossScale) -> float:
    """Share of the steps that GradScaler skipped since gradients overflowed: each halves the scale."""
    return max(math.log2(scale.before / max(scale.now, 1e-30)), 0.0) / max(scale.steps, 1)


def waiting(times: StepTimes) -> float:
    """Share of the time that went into waiting for the loader."""
    return times.waiting / max(times.waiting + times.steps, 1e-9)


# ---- what to try


@dataclass(frozen=True)
class Try:
    """A value of a flag that helps.

    Attributes:
        flag: without dashes.
        value: the value; True for a flag without one.
        factor: of the present value, instead of `value`.
        at_least: the least result of `factor`.
        subjects: how the subjects begin that it helps; "" for all.
    """

    flag: str
    value: Any = None
    factor: float = 0.0
    at_least: float = 0.0
    subjects: str = ""

    def words(self, options: Mapping[str, Any]) -> str:
        """The flag with its new value for a run with these options; "" if it lacks the flag, or has the value."""
        now = options.get(self.flag)
        if now is None:
            return ""
        new = self.value
        if self.factor:
            new = type(now)(max(now * self.factor, self.at_least))
        if new == now:
            return ""
        return f"--{self.flag}" if new is True else f"--{self.flag} {new:g}" if self.factor else f"--{self.flag} {new}"


@dataclass(frozen=True)
class Check:
    """A figure of what was seen, and the threshold from which on it is a finding.

    Attributes:
        name: of what is found.
        measure: takes an object of the class `of`; returns the figure, or None if the check does not apply.
        threshold: see `finds`.
        above: whether figures from the threshold up are findings, else from the threshold down.
        reason: why the threshold is there.
        sentence: what is found, a format string of `subject` and `figure`.
        tries: flags that help, the most promising first.
        warm_up: steps of a run before which nothing is judged.
        looks: figures whose median is judged, each of another look.
    """

    name: str
    of: type
    measure: Callable[[Any], float | None]
    threshold: float
    above: bool
    reason: str
    sentence: str
    tries: tuple[Try, ...]
    warm_up: int = WARM_UP
    looks: int = LOOKS

    def finds(self, figure: float) -> bool:
        """Whether a figure is a finding."""
        return figure >= self.threshold if self.above else figure <= self.threshold

    def advice(self, options: Mapping[str, Any], subject: str) -> str:
        """The flags to try, for a run with these options, as a sentence; "" if none applies."""
        fitting = [attempt for attempt in self.tries if subject.startswith(attempt.subjects)]
        words = [text for attempt in fitting if (text := attempt.words(options))]
        return f"Try {' or '.join(words)}." if words else ""


CHECKS = (
    Check(
        "discriminator wins", Look, way_to_real, 0.2, True,
        "Most of the contrast of an image, about 0.3. Healthy runs have 0.02 to 0.1, even if it is always right.",
        "{subject}: the discriminator is always right, and its gradient leads nowhere: each value would have to change "
        "by {figure:.2g} of a range of 2.",
        (Try("lr_D", factor=0.5), Try("spectral_norm_D", True), Try("diffaugment", "color,translation,cutout")),
    ),
    Check(
        "discriminator lost", Look, discriminator_accuracy, 0.5, False,
        "Chance. The images are those that it was just trained on, so a discriminator that learns is above it.",
        "{subject}: the discriminator cannot tell real from generated images (accuracy {figure:.2f}, chance is 0.5). "
        "Unless the images are perfect, it is too weak.",
        (Try("lr_D", factor=2.0), Try("lr_G", factor=0.5)),
        warm_up=2000,  # with spectral normalization it takes 1,000 steps to learn
    ),
    Check(
        "oscillation", LossSeries, swing, 2.0, True,
        "Noise stays below 1.3 in 99% of cases: three values twice as high as three others, four times, are no noise.",
        "{subject}: the loss rises and falls by a factor of {figure:.1f} or more, again and again.",
        (Try("lr_G", factor=0.5), Try("lr_D", factor=0.5), Try("ema_decay", 0.999)),
    ),
    Check(
        "mode collapse", Look, diversity, 0.1, False,
        "Ten times closer to each other than real images are. Runs that start well have 0.2 and then 0.5 to 1.2.",
        "{subject}: the images are all alike (distance to the most similar one: {figure:.2f} of that of real images).",
        (
            Try("diffaugment", "color,translation,cutout"), Try("lambda_A", factor=2.0), Try("lambda_L1", factor=2.0),
            Try("lambda_NCE", factor=2.0), Try("lr_D", factor=0.5),
        ),
    ),
    Check(
        "copy-through", Look, change, COPIED, False,
        "2.5 of 255 gray levels, which nobody sees.",
        "{subject}: the output is a copy of the input (mean difference {figure:.3f} of a range of 2).",
        (
            Try("lambda_identity", factor=0.5), Try("lambda_A", factor=0.5), Try("lambda_NCE", factor=0.5),
            Try("lr_D", factor=2.0),
        ),
    ),
    Check(
        "color inversion", Look, correlation, -0.3, False,
        "Inverted images have -0.5 to -1. True pairs have 0.1 to 0.7 on average, even photographs and maps.",
        "{subject}: light and dark have changed places (correlation of output and input {figure:.2f}).",
        (Try("lambda_identity", factor=2.0, at_least=0.5), Try("lambda_A", factor=0.5)),
        warm_up=1000,  # good runs turn the right side out in their first 800 steps
    ),
    Check(
        "content lost", Content, content_kept, 0.0, False,
        "The input itself scores as high, so the translation only destroys content.",
        "{subject}: the output keeps less content than the untranslated input (by {figure:.3f}).",
        (
            Try("lambda_identity", factor=2.0, at_least=0.5), Try("lambda_A", factor=2.0),
            Try("lambda_NCE", factor=2.0),
        ),
        looks=1,
    ),
    Check(
        "checkerboard", Look, grid_strength, 10.0, True,
        "Ten times the neighboring frequencies. Real images and healthy runs have 1 to 3.",
        "{subject}: the images have a grid of 2, 4 or 8 pixels ({figure:.0f} times the energy of real images there).",
        (Try("resample", "blur"),),
    ),
    Check(
        "saturation", Look, clipping, 0.25, True,
        "A quarter of the image. There, tanh has no gradient left, so it does not recover.",
        "{subject}: {figure:.0%} more of the image than of real images is pure black, white or color.",
        (Try("lr_G", factor=0.5), Try("init_gain", factor=0.5)),
    ),
    Check(
        "flat output", Look, relative_contrast, FLAT, False,
        "A fifth of the contrast of real images looks uniform.",
        "{subject}: the images are nearly uniform (contrast {figure:.2f} of that of real images).",
        (Try("lr_G", factor=0.5), Try("norm", "instance"), Try("lr_D", factor=0.5)),
    ),
    Check(
        "hidden signal", Look, hidden_signal, 2.0, True,
        "Twice the error that the blur explains. If the translation shows what the reconstruction needs, it is near 1.",
        "{subject}: the reconstruction reads an invisible signal (8 bits and a slight blur make the error {figure:.1f} "
        "times larger), so the cycle loss does not keep content.",
        (Try("lambda_A", factor=0.5), Try("lambda_B", factor=0.5)),
    ),
    Check(
        "attention unused", Attention, strength, UNUSED, False,
        "1% of its input. Gamma starts at 0, and Adam can move it by up to 1 in 5,000 steps.",
        "{subject}: attention adds next to nothing (gamma {figure:.4f}).",
        (Try("attn_G", "none", subjects="G"), Try("attn_D", "none", subjects="D")),
        warm_up=5000, looks=3,
    ),
    Check(
        "attention uniform", Attention, uniformity, 0.999, True,
        "Entropy within 0.1% of the maximum, as at the start: the average of all positions.",
        "{subject}: every position attends to all others alike (entropy {figure:.2%} of the maximum).",
        (Try("attn_G", "none", subjects="G"), Try("attn_D", "none", subjects="D")),
        warm_up=5000, looks=3,
    ),
    Check(
        "fp16 overflow", LossScale, skipped, 0.005, True,
        "Ten times the one step in 2,000 that GradScaler skips to find the largest scale.",
        "Gradients overflow fp16: {figure:.1%} of the steps were skipped, and the loss scale keeps falling.",
        (Try("precision", "bf16"),),
    ),
    Check(
        "data starved", StepTimes, waiting, 0.5, True,
        "Half of the time: faster loading would make training up to twice as fast.",
        "{figure:.0%} of the time goes into waiting for images.",
        (Try("num_threads", factor=2.0, at_least=4),),
        warm_up=100,
    ),
)  # fmt: skip
