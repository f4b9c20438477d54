"""The picture of the layers is that of the import contracts."""

from __future__ import annotations

import runpy
from pathlib import Path
from xml.etree import ElementTree

DRAWING = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "draw_architecture.py"))


def test_the_picture_is_drawn_from_the_contracts_of_today():
    """Run `python docs/draw_architecture.py` when this fails."""
    assert DRAWING["PICTURE"].read_text(encoding="utf-8") == DRAWING["draw"]()


def test_every_part_of_the_package_is_in_the_picture():
    """A folder or module that no contract names would be missing."""
    package = Path(__file__).parents[1] / "fwdb"
    there = {p.parent.name for p in package.glob("*/__init__.py")} | {
        p.stem for p in package.glob("*.py") if not p.stem.startswith("_")
    }
    shown = ElementTree.fromstring(DRAWING["draw"]()).iter("{http://www.w3.org/2000/svg}text")
    names = {(text.text or "").partition(" ")[0] for text in shown if text.get("class") == "name"}

    assert names == there
