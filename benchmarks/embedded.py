"""The built-in servers: how long a start, a join and a stop take, and what kill -9 loses.

Goals on 2 cores, medians: cold start of both 8 s, warm 2 s, join well inside the 150 ms of
`connect()`, no acknowledged row lost in 12 rounds.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.crash import rounds

from fwdb import embedded

COLD_ROUNDS, WARM_ROUNDS, JOIN_ROUNDS, KILLS = 5, 5, 100, 12


def seconds(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def report(name: str, figures: list[float], goal: str = "") -> None:
    middle, worst = statistics.median(figures), max(figures)
    print(f"{name:28} median {middle:8.3f} s   worst {worst:8.3f} s   n={len(figures)}  {goal}")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fwdb-bench-") as folder:
        os.chmod(folder, 0o755)  # as a project folder is
        cold = []
        home = Path(folder, ".fwdb")
        for _ in range(COLD_ROUNDS):
            embedded.remove(home)
            cold.append(seconds(lambda: embedded.up(home, owner_pid=os.getpid())))
        report("cold up, both", cold, "goal 8 s")
        joins = [seconds(lambda: embedded.running(home)) for _ in range(JOIN_ROUNDS)]
        report("running(), join", joins, "goal 0.020 s")
        warm, stops = [], []
        for _ in range(WARM_ROUNDS):
            stops.append(seconds(lambda: embedded.down(home)))
            warm.append(seconds(lambda: embedded.up(home, owner_pid=os.getpid())))
        report("warm up, both", warm, "goal 2 s")
        report("down, both", stops, "goal 6 s")
        for name in ("postgres", "mongodb"):
            print(f"\nkill -9 of {name} under 4 writers, journal on")
            print("round  acknowledged  lost so far  up again")
            for number, one in enumerate(rounds(home, name, KILLS), start=1):
                print(
                    f"{number:5} {one.acknowledged:13} {one.lost:12} {one.recovery_seconds:8.2f} s"
                )
        embedded.remove(home)


if __name__ == "__main__":
    main()
