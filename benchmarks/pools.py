"""What counting waits and holds adds to a checkout: fwdb's pool beside a plain QueuePool.

    python benchmarks/pools.py [rounds]

No server is asked: a connection is a bare object, so that only the pools differ. Batches of
checkouts run in turn, in an order that changes; the figures are medians of the thread's own CPU
time. A plain pool beside another plain one shows the noise. The goal is 1 µs per checkout.
"""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pymongo.monitoring as events
from sqlalchemy.pool import QueuePool

from fwdb.stores.pool import CountingPool, MongoPoolListener

CHECKOUTS = 2000
SERVER = ("localhost", 27017)


class Connection:
    """As much of a driver's connection as a pool touches."""

    def rollback(self) -> None: ...
    def close(self) -> None: ...


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    pools = {
        "plain": QueuePool(Connection, pool_size=5),
        "plain twin": QueuePool(Connection, pool_size=5),
        "counting": CountingPool(Connection, pool_size=5),
    }
    compare("QueuePool, one thread", {n: use(p) for n, p in pools.items()}, rounds)
    listener = MongoPoolListener(100)
    print(f"pymongo, events of one checkout{'':<13}{cost(mongo(listener), rounds):>8.2f} µs")
    crowd = {n: crowded(p) for n, p in pools.items()}
    compare("QueuePool, four threads", crowd, max(5, rounds // 20), clock=time.process_time)


def use(pool: Any) -> Callable[[], None]:
    def batch() -> None:
        connect = pool.connect
        for _ in range(CHECKOUTS):
            connect().close()

    return batch


def crowded(pool: Any) -> Callable[[], None]:
    def batch() -> None:
        threads = [threading.Thread(target=use(pool)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return batch


def mongo(listener: MongoPoolListener) -> Callable[[], None]:
    """What the listener does with the three events of a checkout, their making left out."""
    started = events.ConnectionCheckOutStartedEvent(SERVER)
    out = events.ConnectionCheckedOutEvent(SERVER, 1, 0.0)
    back = events.ConnectionCheckedInEvent(SERVER, 1)
    listener.connection_created(events.ConnectionCreatedEvent(SERVER, 1))
    listener.connection_ready(events.ConnectionReadyEvent(SERVER, 1, 0.001))

    def batch() -> None:
        for _ in range(CHECKOUTS):
            listener.connection_check_out_started(started)
            listener.connection_checked_out(out)
            listener.connection_checked_in(back)

    return batch


def compare(
    what: str,
    batches: dict[str, Callable[[], None]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.thread_time,
) -> None:
    took: dict[str, list[float]] = {name: [] for name in batches}
    for turn in range(rounds + 3):
        order = list(batches)
        random.shuffle(order)
        for name in order:
            started = clock()
            batches[name]()
            if turn >= 3:  # the first turns open connections and fill caches
                took[name].append(clock() - started)
    threads = 4 if clock is time.process_time else 1
    each = 1e6 / (CHECKOUTS * threads)
    plain = took["plain"]
    print(f"{what:<44}{statistics.median(plain) * each:>8.2f} µs per checkout and return")
    for name in list(batches)[1:]:
        more = [a - b for a, b in zip(took[name], plain, strict=True)]
        ratio = statistics.median(a / b for a, b in zip(took[name], plain, strict=True))
        print(f"  {name:<42}{statistics.median(more) * each:>+8.2f} µs   ratio {ratio:.3f}")


def cost(batch: Callable[[], None], rounds: int) -> float:
    took = []
    for _ in range(rounds):
        started = time.thread_time()
        batch()
        took.append(time.thread_time() - started)
    return statistics.median(took) * 1e6 / CHECKOUTS


if __name__ == "__main__":
    main()
