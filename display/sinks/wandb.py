"""Weights & Biases: losses and images of a run, for --use_wandb."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from torch import Tensor

from display.events import Images, Losses, Metrics
from display.sink import Sink
from util.images import to_image


class WandbSink(Sink):
    """Logs to Weights & Biases. A step is the number of images seen.

    Args:
        run_dir: folder for its files.
        project: name of the project.
        name: name of the run.
        config: options of the run.
        run_id: the run to append to; None creates a new one.
        images_freq: images seen between two updates of images; 0 is never.
    """

    def __init__(
        self, run_dir: Path, project: str, name: str, config: dict[str, Any], *, run_id: str | None, images_freq: int
    ):
        self.run_dir, self.images_freq = run_dir, images_freq
        self.run = wandb.init(
            project=project, name=name, dir=run_dir, config=config, id=run_id, resume="allow" if run_id else None
        )

    def losses(self, event: Losses) -> None:
        """Log values."""
        self.run.log({"epoch": event.epoch, **event.values}, step=event.images)

    def metrics(self, event: Metrics) -> None:
        """Log metrics."""
        self.run.log({f"metrics/{name}": value for name, value in event.values.items()}, step=event.images)

    def images(self, event: Images) -> None:
        """Log images."""
        images = {label: wandb.Image(str(self.run_dir / file)) for label, file in event.files.items()}
        self.run.log(images, step=event.images)

    def result(self, name: str, images: Mapping[str, Tensor]) -> None:
        """Log the results of the test image `name`: label -> (C, H, W) in [-1, 1]."""
        self.run.log({label: wandb.Image(to_image(image), caption=name) for label, image in images.items()})

    def close(self) -> None:
        """Upload the rest and end the run."""
        self.run.finish()
