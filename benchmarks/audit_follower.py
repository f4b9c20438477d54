"""How fast the follower takes changes of MongoDB into the trail, and what writing them costs.

    python benchmarks/audit_follower.py [events]

Rounds in turn: the events are only read from the change stream, and they are followed, which
reads, compares and writes them. Documents have about 1.3 kB, events the document before. Both use
the built-in servers in a folder of their own. CPU is that of this process.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import fwdb
from fwdb import embedded, migrating
from fwdb.audit.cdc.consumer import OVERLAP_SECONDS
from fwdb.database import Database
from fwdb.stores.changes import ChangeFeed, present

ROUNDS = 3
DOCUMENTS = 500
GOAL = 2000  # events a second


def main() -> None:
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory(prefix="fwdb-bench-") as folder:
        os.environ["FWDB_HOME"] = str(Path(folder) / ".fwdb")
        try:
            with fwdb.connect(role="owner") as db:
                migrating.migrate(db.postgres, db.mongodb)
                measure(db, events)
        finally:
            embedded.remove()


def measure(db: Database, events: int) -> None:
    layers = [{"id": str(n), "type": "silhouette", "note": "x" * 100} for n in range(8)]
    design = {"userId": "u", "name": "N", "status": "draft", "layers": layers, "version": 1}
    collection = db.mongodb.collection("designs")
    collection.insert_many([{**design} for _ in range(DOCUMENTS)])
    began = time.perf_counter()
    db.audit.follow(once=True)
    seconds = time.perf_counter() - began
    print(f"first run, {DOCUMENTS} documents there     {seconds:8.2f} s")

    read, followed, cpu = [], [], []
    for number in range(ROUNDS):
        # A start reads the seconds before its position again; let nothing have changed in them.
        time.sleep(OVERLAP_SECONDS + 1)
        db.audit.follow(once=True)
        start = present(db.mongodb, "designs").time
        for _ in range(events // DOCUMENTS):
            collection.update_many({}, {"$inc": {"version": 1}, "$set": {"name": f"N{number}"}})
        began = time.perf_counter()
        feed = ChangeFeed(db.mongodb, "designs", at=start.next, wait_ms=50)
        count = 0
        while count < events:
            count += len(feed.read(1000, seconds=1).events)
        read.append(events / (time.perf_counter() - began))
        feed.close()
        began, used = time.perf_counter(), time.process_time()
        changes = db.audit.follow(once=True).changes
        followed.append(changes / (time.perf_counter() - began))
        cpu.append(1e6 * (time.process_time() - used) / changes)
    rate, reading = statistics.median(followed), statistics.median(read)
    print(f"read only, median of {ROUNDS}           {reading:8,.0f} events/s")
    print(f"read, compared, written           {rate:8,.0f} events/s  (goal {GOAL:,})")
    print(f"of the rate of reading only       {rate / reading:8.2f}")
    print(f"CPU of the follower               {statistics.median(cpu):8,.0f} us/event")


if __name__ == "__main__":
    main()
