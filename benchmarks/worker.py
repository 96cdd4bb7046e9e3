"""One side of a comparison, in a process of its own: takes a step whenever it is told to, and says how long it took.

python -m benchmarks.worker CASE '{"keyword": "value"}' [operations] prints a JSON line when it is ready, and one for
every line that it reads. Counting operations takes memory, and slows down workers of a data loader started meanwhile.
"""

import contextlib
import json
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import CASES
from util.device import peak_memory


def main() -> None:
    """Build the case, warm up, then serve."""
    name, keywords, counted = sys.argv[1], json.loads(sys.argv[2]), "operations" in sys.argv[3:]
    torch.manual_seed(0)
    started = time.perf_counter()
    case = CASES[name](**keywords)
    peak_before = peak_memory()
    with FlopCounterMode(display=False) if counted else contextlib.nullcontext() as counter:
        case.step()
    case.prepare()
    for _ in range(case.warm_up):
        case.step()
    ready = {
        "flops": counter.get_total_flops() if counter else None,
        "items": case.items,
        "start_seconds": time.perf_counter() - started,
        "peak_before": peak_before,
        "peak": peak_memory(),
    }
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        case.step()
        print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
