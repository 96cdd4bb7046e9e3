"""Weights & Biases: losses and images of a run, for --use_wandb."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from util.display.sink import Progress, Sink
from util.images import to_image

try:
    import wandb
except ImportError as error:
    raise ValueError(f"--use_wandb: {error}; pip install wandb") from error


class WandbSink(Sink):
    """Logs to the run `name` of a project, at the number of images seen."""

    def __init__(
        self, project: str, name: str, run_dir: Path, *, config: dict[str, Any], losses_freq: int, images_freq: int
    ):
        self.losses_freq, self.images_freq = losses_freq, images_freq
        self.run = wandb.init(project=project, name=name, dir=run_dir, config=config)

    def losses(self, at: Progress, losses: Mapping[str, float]) -> None:
        """Log losses."""
        self.run.log({"epoch": at.epoch, **losses}, step=at.total_images)

    def images(self, at: Progress, images: Mapping[str, Tensor]) -> None:
        """Log the first image of each batch."""
        self.run.log({label: wandb.Image(to_image(batch[0])) for label, batch in images.items()}, step=at.total_images)

    def result(self, name: str, images: Mapping[str, Tensor]) -> None:
        """Log what test.py made of the picture `name`: label -> (C, H, W)."""
        self.run.log({label: wandb.Image(to_image(image), caption=name) for label, image in images.items()})

    def close(self) -> None:
        """Upload what is left."""
        self.run.finish()
