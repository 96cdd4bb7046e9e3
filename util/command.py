"""How the scripts meet their users' mistakes."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from util import distributed


def run_command(main: Callable[[], int]) -> int:
    """Run a script's main and return its exit status; a ValueError or OSError becomes one message and status 2.

    With --verbose the traceback is shown. Of several processes only the first prints, but each its own errors.
    """
    who = Path(sys.argv[0]).name + (f" (process {distributed.rank()})" if distributed.count() > 1 else "")
    try:
        with contextlib.ExitStack() as stack:
            if not distributed.is_main():
                nothing = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(contextlib.redirect_stdout(nothing))
            return main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        if "--verbose" in sys.argv:
            raise
        print(f"{who}: error: {error}", file=sys.stderr)
        return 2
