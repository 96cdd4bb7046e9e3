"""What happens in a run: the events that its log keeps, one JSON object a line, and that sinks show."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands; all counts go on when it is continued."""

    step: int  # updates
    epoch: int  # this one, 1-based, of
    epochs: int
    epoch_images: int  # seen in this epoch, of
    epoch_size: int
    images: int  # seen in all
    seconds: float  # of training; those that `Display` is given count from this start of it
    batch_size: int = 0  # of the last step
    step_seconds: float = 0.0  # computing, per image of the last step
    data_seconds: float = 0.0  # waiting for data, per image of the last step

    @property
    def images_left(self) -> int:
        """Images until the end of the last epoch; 0 for a run that has gone on for longer."""
        return max((self.epochs - self.epoch + 1) * self.epoch_size - self.epoch_images, 0)

    @property
    def epochs_seen(self) -> float:
        """Epochs, with the fraction of this one."""
        return self.epoch - 1 + self.epoch_images / self.epoch_size

    @property
    def epoch_ended(self) -> bool:
        """Whether this was the last step of the epoch."""
        return self.epoch_images == self.epoch_size

    def crossed(self, frequency: int) -> bool:
        """Whether the last step crossed a multiple of `frequency` images; a frequency of 0 is never."""
        return frequency > 0 and self.images // frequency > (self.images - self.batch_size) // frequency


@dataclass(frozen=True, kw_only=True)
class Event(Progress):
    """Something that happened, and when. One of the classes below."""

    @classmethod
    def at(cls, progress: Progress, **content: Any) -> Self:
        """An event of this class with its content."""
        return cls(**asdict(progress), **content)


@dataclass(frozen=True, kw_only=True)
class Start(Event):
    """Training starts, or goes on."""

    time: str  # ISO 8601
    continued: bool
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Losses(Event):
    """Losses and all else that is shown as a curve: gammas, learning rates, pace, memory. NaN where not finite."""

    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Images(Event):
    """Pictures were written."""

    pictures: dict[str, str]  # label -> file, relative to the folder of the run
    attention: str = ""  # file for the viewer


@dataclass(frozen=True, kw_only=True)
class End(Event):
    """Training ends."""

    reason: str  # finished, stopped or failed


KINDS: dict[str, type[Event]] = {"start": Start, "losses": Losses, "images": Images, "end": End}
NAMES = {kind: name for name, kind in KINDS.items()}


def to_json(event: Event) -> str:
    """A line of the log, without its end. JSON has no word for what is not finite: null, or inf in options."""
    content = {"kind": NAMES[type(event)], **asdict(event)}
    for name, word in (("values", lambda value: None), ("options", str)):
        if name in content:
            content[name] = {key: word(value) if _not_finite(value) else value for key, value in content[name].items()}
    return json.dumps(content, allow_nan=False)


def from_json(line: str | bytes) -> Event:
    """The event of a line of the log. ValueError if it is none."""
    try:
        content = json.loads(line)
        event = KINDS[content.pop("kind")](**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no event: {line[:80]!r} ({error})") from error
    if isinstance(event, Losses):
        event.values.update({name: math.nan for name, value in event.values.items() if value is None})
    return event


def charts(names: Iterable[str]) -> dict[str, list[str]]:
    """Which values belong into one chart: its title -> their names."""
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


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
