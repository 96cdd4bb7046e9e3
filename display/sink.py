"""Somewhere to show a run."""

from collections.abc import Sequence

from display.events import End, Event, Images, Losses, Progress, Start


class Sink:
    """Shows the events of a run. A subclass overrides what it has a use for.

    `images_freq` is the images between two pictures that it wants; 0 = none. With `epoch_images` it wants those of the
    end of each epoch too.
    """

    images_freq = 0
    epoch_images = False

    def wants_images(self, at: Progress) -> bool:
        """Whether it wants pictures of this step."""
        return at.crossed(self.images_freq) or (self.epoch_images and at.epoch_ended)

    def step(self, at: Progress) -> None:
        """Called after every step, so it has to be quick."""

    def show(self, events: Sequence[Event]) -> None:
        """Show events that the log has just got, or all of them again."""
        for event in events:
            match event:
                case Start():
                    self.start(event)
                case Losses():
                    self.losses(event)
                case Images() if self.wants_images(event):
                    self.images(event)
                case End():
                    self.end(event)

    def start(self, event: Start) -> None:
        """Training starts, or goes on."""

    def losses(self, event: Losses) -> None:
        """Show values."""

    def images(self, event: Images) -> None:
        """Show pictures."""

    def end(self, event: End) -> None:
        """Training ends."""

    def close(self) -> None:
        """Called once, at the end."""
