"""How the scripts meet their users' mistakes."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path


def run_command(main: Callable[[], int]) -> int:
    """Run a script's main and return its exit status; a ValueError or OSError becomes one message and status 2.

    With --verbose the traceback is shown.
    """
    try:
        return main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        if "--verbose" in sys.argv:
            raise
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        return 2
