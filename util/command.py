"""How the scripts meet their users' mistakes, and disks that are full or cannot be written."""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from util import distributed
from util.interrupt import Output


def run_command(main: Callable[[], int]) -> int:
    """Run a script's main and return its exit status; a ValueError or OSError becomes one message and status 2.

    With --verbose the traceback is shown. Of several processes only the first prints, but each its own errors.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stdout, sys.stderr = Output.like(sys.stdout), Output.like(sys.stderr)
    who = Path(sys.argv[0]).name + (f" (process {distributed.rank()})" if distributed.count() > 1 else "")
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
        print(f"{who}: error: {error}", file=sys.stderr)
        status = 2
    except Exception:  # a mistake of ours: shown in full
        traceback.print_exc()
        status = 1
    return status


@contextlib.contextmanager
def writing(flag: str, folder: Path) -> Iterator[None]:
    """Let OSErrors of writing into `folder` name it, and `flag`, which chose it: that of a full disk names nothing.

    Those of other places, and of servers (ConnectionError), stay as they are.
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
