"""What the scripts share: log messages on the console, errors as one line, exit statuses."""

import contextlib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from tqdm import tqdm

from util import distributed
from util.errors import RemediedError
from util.signals import Output

SKIPPED = 3  # exit status of a job that did all but the files that it was told to skip
PACKAGES = ("train", "test", "scripts", "display", "training", "inference", "models", "data", "options", "util")


class ConsoleHandler(logging.Handler):
    """Writes to the current sys.stdout, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. An output that cannot be written is an error here, unlike in logging's own handlers."""
        tqdm.write(self.format(record), file=sys.stdout)


def configure_logging() -> None:
    """Show the log messages of this project on the console. Only scripts call it; calling it again changes nothing."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # errors already say what is wrong with a file
    logging.getLogger("visdom").setLevel(logging.ERROR)  # warns about every new session
    for package in PACKAGES:
        logger = logging.getLogger(package)
        if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
            logger.addHandler(ConsoleHandler())
            logger.setLevel(logging.INFO)
            logger.propagate = False


def run_command(main: Callable[[], int], *, arguments: Collection[str] | None = None) -> int:
    """Run a script's main and return its exit status. A ValueError or OSError becomes one message and status 2.

    --verbose shows the traceback. Only rank 0 prints, but every process prints its own errors.

    Args:
        main: returns the exit status.
        arguments: the flags, without dashes, that a message may advise; None for all flags of train.py and test.py.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stdout, sys.stderr = Output.like(sys.stdout), Output.like(sys.stderr)
    who = Path(sys.argv[0]).name + (f" (process {distributed.rank()})" if distributed.world_size() > 1 else "")
    try:
        with contextlib.ExitStack() as stack:
            if not distributed.is_main():
                nothing = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(contextlib.redirect_stdout(nothing))
            return main()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        if "--verbose" in sys.argv:
            traceback.print_exc()
        print(f"{who}: error: {with_advice(error, arguments)}", file=sys.stderr)
        status = 2
    except Exception:  # a bug: shown in full
        traceback.print_exc()
        status = 1
    return status


def with_advice(error: Exception, arguments: Collection[str] | None = None) -> str:
    """The message of `error`, followed by the flags that avoid it if all of them are among `arguments` (None: any)."""
    message = str(error)
    if not isinstance(error, RemediedError) or not error.remedy:
        return message
    if arguments is not None and not error.remedy.keys() <= set(arguments):
        return message
    separator = "\n" if "\n" in message else " "
    return f"{message}{separator}{error.advice()}"


@contextlib.contextmanager
def writing(flag: str, folder: Path) -> Iterator[None]:
    """Make an OSError from writing into `folder` name the path and the `flag` that chose it; a full disk names neither.

    Errors about other places and of servers (ConnectionError) stay as they are.
    """
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
        if not (place.is_relative_to(folder) or folder.is_relative_to(place)):
            raise
        reason = error.strerror or error
        raise OSError(f"Cannot write {place} ({reason}): make that possible, or choose another {flag}.") from error
