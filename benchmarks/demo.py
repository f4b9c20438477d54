"""How long a newcomer waits: the demo after installation, five reports, and `connect()`.

    python benchmarks/demo.py

Wall time of whole processes in a folder of their own, on servers of their own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONNECT = """
import time, fwdb
fwdb.connect(postgres_url="postgresql://localhost/x", mongodb_url="mongodb://localhost/x").close()
started = time.perf_counter()
db = fwdb.connect()
db.postgres.ping(), db.mongodb.ping()
print(1000 * (time.perf_counter() - started))
db.close()
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fwdb-bench-") as folder:
        environment = {**os.environ, "FWDB_HOME": str(Path(folder) / ".fwdb")}

        def run(*arguments: str) -> tuple[float, str]:
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            return time.perf_counter() - started, done.stdout

        try:
            seconds = run("-m", "fwdb.cli", "demo")[0]
            print(f"demo, nothing running         {seconds:7.1f} s  (goal 90)")
            reports = [run("-m", "fwdb.cli", "report", "all")[0] for _ in range(3)]
            print(f"five reports, median of 3     {statistics.median(reports):7.1f} s  (goal 30)")
            connects = [float(run("-c", CONNECT)[1]) for _ in range(5)]
            print(f"connect() and a ping of each  {statistics.median(connects):7.1f} ms (goal 150)")
        finally:
            run("-m", "fwdb.cli", "down")


if __name__ == "__main__":
    main()
