"""TensorBoard: curves and images in CKPT/NAME/tensorboard, for --use_tensorboard."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from display.events import Images, Losses, Metrics, charts
from display.sink import Sink


class TensorBoardSink(Sink):
    """Writes to TensorBoard. A step is the number of images seen.

    Args:
        run_dir: folder of the run.
        purge_step: TensorBoard hides what was written from this step on.
        images_freq: images seen between two updates of images; 0 is never.
    """

    def __init__(self, run_dir: Path, *, purge_step: int, images_freq: int):
        self.run_dir, self.images_freq = run_dir, images_freq
        self.writer = SummaryWriter(run_dir / "tensorboard", purge_step=purge_step)

    def losses(self, event: Losses) -> None:
        """Write values."""
        for chart, names in charts(event.values).items():
            for name in names:
                self.writer.add_scalar(f"{chart}/{name}", event.values[name], event.images)

    def metrics(self, event: Metrics) -> None:
        """Write metrics."""
        for name, value in event.values.items():
            self.writer.add_scalar(f"metrics/{name}", value, event.images)

    def images(self, event: Images) -> None:
        """Write images."""
        for label, file in event.files.items():
            with Image.open(self.run_dir / file) as image:
                self.writer.add_image(label, np.array(image.convert("RGB")), event.images, dataformats="HWC")

    def close(self) -> None:
        """Close the file."""
        self.writer.close()
