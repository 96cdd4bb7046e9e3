"""The events of a run, which its log keeps as one JSON object per line and sinks show."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is. All counts include those from before the run was resumed."""

    step: int  # optimizer steps
    epoch: int  # current epoch, from 1
    epochs: int  # epochs of the whole run
    epoch_images: int  # images seen in this epoch
    epoch_size: int  # images in an epoch
    images: int  # images seen in total
    seconds: float  # time of training; `Display` takes the time since the process started training
    batch_size: int = 0  # of the last step
    step_seconds: float = 0.0  # step time per image of the last step
    data_seconds: float = 0.0  # time waiting for data, per image of the last step
    time_used: float = 0.0  # share of --train_minutes, 0 to 1

    @property
    def done(self) -> float:
        """Share of the run, 0 to 1: of its epochs or of its time, whichever is further."""
        return min(1.0, max(self.epochs_seen / self.epochs, self.time_used))

    @property
    def epochs_seen(self) -> float:
        """Epochs seen, including the fraction of the current one."""
        return self.epoch - 1 + self.epoch_images / self.epoch_size

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step ended the epoch."""
        return self.epoch_images == self.epoch_size

    def crossed(self, frequency: int) -> bool:
        """Whether the last step crossed a multiple of `frequency` images; 0 is never."""
        return frequency > 0 and self.images // frequency > (self.images - self.batch_size) // frequency


@dataclass(frozen=True, kw_only=True)
class Event(Progress):
    """Something that happened, and when: the base of the classes below."""

    @classmethod
    def at(cls, progress: Progress, **content: Any) -> Self:
        """Create an event of this class with its content."""
        return cls(**asdict(progress), **content)


@dataclass(frozen=True, kw_only=True)
class Start(Event):
    """Training starts or resumes."""

    time: str  # ISO 8601
    resumed: bool
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Losses(Event):
    """Values shown as curves: losses, gammas, learning rates, throughput, peak memory. Non-finite ones become NaN."""

    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Metrics(Event):
    """Values of --metrics. Non-finite ones become NaN."""

    values: dict[str, float]
    note: str  # by which features and on what
    best: str = ""  # metric by which the best checkpoint is kept
    is_best: bool = False  # this one is


@dataclass(frozen=True, kw_only=True)
class Images(Event):
    """Images were written."""

    files: dict[str, str]  # label -> file, relative to the folder of the run
    attention: str = ""  # file for the viewer


@dataclass(frozen=True, kw_only=True)
class Health(Event):
    """A finding of `training.health` begins, or is over. The fields are those of `training.health.Finding`."""

    check: str
    subject: str
    sentence: str
    advice: str
    figure: float
    over: bool


@dataclass(frozen=True, kw_only=True)
class End(Event):
    """Training ends."""

    reason: str  # finished, stopped or failed


KINDS: dict[str, type[Event]] = {
    "start": Start, "losses": Losses, "metrics": Metrics, "images": Images, "health": Health, "end": End,
}  # fmt: skip
NAMES = {kind: name for name, kind in KINDS.items()}


def to_json(event: Event) -> str:
    """Return a line of the log, without its newline. JSON has no non-finite numbers: null, or "inf" in options."""
    content = {"kind": NAMES[type(event)], **asdict(event)}
    for name, replacement in (("values", lambda value: None), ("options", str)):
        for key, value in content.get(name, {}).items():
            if _non_finite(value):
                content[name][key] = replacement(value)
    return json.dumps(content, allow_nan=False)


def from_json(line: str | bytes) -> Event:
    """Return the event of a line of the log.

    Raises:
        ValueError: the line holds no event.
    """
    try:
        content = json.loads(line)
        event = KINDS[content.pop("kind")](**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no event: {line[:80]!r} ({error})") from error
    if isinstance(event, Losses | Metrics):
        event.values.update({name: math.nan for name, value in event.values.items() if value is None})
    return event


def charts(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of values into charts: title of a chart -> names."""
    titles: dict[str, list[str]] = defaultdict(list)
    for name in names:
        titles[_chart(name)].append(name)
    return dict(titles)


def _chart(name: str) -> str:
    if name.startswith("gamma_"):
        return "gammas"
    if name.startswith("lr_"):
        return "learning rates"
    return {"images_per_second": "images per second", "peak_memory_mb": "peak memory, MB"}.get(name, "losses")


def _non_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
