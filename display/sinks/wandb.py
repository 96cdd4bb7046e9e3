"""Weights & Biases: losses and images of a run, for --use_wandb."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from torch import Tensor

from display.events import Images, Losses
from display.sink import Sink
from util.images import to_image


class WandbSink(Sink):
    """Logs at the number of images seen, to the run `run_id` of a project, or to a new one."""

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

    def images(self, event: Images) -> None:
        """Log pictures."""
        pictures = {label: wandb.Image(str(self.run_dir / file)) for label, file in event.pictures.items()}
        self.run.log(pictures, step=event.images)

    def result(self, name: str, images: Mapping[str, Tensor]) -> None:
        """Log what test.py made of the picture `name`: label -> (C, H, W)."""
        self.run.log({label: wandb.Image(to_image(image), caption=name) for label, image in images.items()})

    def close(self) -> None:
        """Upload what is left."""
        self.run.finish()
