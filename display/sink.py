"""The base class of everything that shows a run."""

from collections.abc import Sequence

from display.events import End, Event, Health, Images, Losses, Metrics, Progress, Start


class Sink:
    """Shows the events of a run. A subclass overrides the methods that it needs.

    Attributes:
        images_freq: images seen between two updates of images; 0 is never.
        epoch_images: show the images at the end of each epoch too.
    """

    images_freq = 0
    epoch_images = False

    def wants_images(self, at: Progress) -> bool:
        """Whether the sink shows the images of this step."""
        return at.crossed(self.images_freq) or (self.epoch_images and at.epoch_ended)

    def step(self, at: Progress) -> None:
        """Called after every step, so it must be fast."""

    def show(self, events: Sequence[Event]) -> None:
        """Show new events of the log; a replay shows all of them."""
        for event in events:
            match event:
                case Start():
                    self.start(event)
                case Losses():
                    self.losses(event)
                case Metrics():
                    self.metrics(event)
                case Images() if self.wants_images(event):
                    self.images(event)
                case Health():
                    self.health(event)
                case End():
                    self.end(event)

    def start(self, event: Start) -> None:
        """Training starts or resumes."""

    def losses(self, event: Losses) -> None:
        """Show values."""

    def metrics(self, event: Metrics) -> None:
        """Show metrics."""

    def images(self, event: Images) -> None:
        """Show images."""

    def health(self, event: Health) -> None:
        """Show a finding that begins or is over."""

    def end(self, event: End) -> None:
        """Training ends."""

    def close(self) -> None:
        """Called once, at the end."""
