"""Run every benchmark of this folder, one after the other: `make bench`.

Each prints its own figures; `README.md` keeps those of one run with the goals beside them. Give
names to run only those: ``python benchmarks/run.py frames seeding``.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
KNOWN = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "run")


def main() -> int:
    chosen = sys.argv[1:] or KNOWN
    if unknown := sorted(set(chosen) - set(KNOWN)):
        print(f"There is no benchmark {', '.join(unknown)}; choose from {', '.join(KNOWN)}.")
        return 2
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}")
    failed = 0
    for name in chosen:
        print(f"\n== {name}", flush=True)
        failed |= subprocess.run([sys.executable, str(FOLDER / f"{name}.py")]).returncode
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
