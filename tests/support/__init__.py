"""What tests of several folders share: servers, faults, captured tables, receivers."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
