"""Draws architecture.svg from the import contracts: ``python docs/draw_architecture.py``.

Layers are those of import-linter in pyproject.toml, from top to bottom; each part says what the
first sentence of its docstring says. A test compares the picture with what is drawn.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"

WIDTH, MARGIN, GAP, LINE = 1000, 20, 12, 16
# Colours that stand out from a white page and from a dark one.
STYLE = """
  .name { font: 600 14px ui-monospace, monospace; }
  .about, .note { font: 12px system-ui, sans-serif; }
  text { fill: #1f2328; } .about, .note { fill: #57606a; }
  rect { fill: #f6f8fa; stroke: #8c959f; } .beside { stroke-dasharray: 5 4; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .about, .note { fill: #9ea7b3; }
    rect { fill: #161b22; stroke: #6e7681; }
  }
"""


def layers() -> list[list[str]]:
    """Modules by layer, the highest first."""
    return [[part.strip() for part in layer.split("|")] for layer in _contract("layers")["layers"]]


def beside() -> list[str]:
    """Modules that are in no layer, and in a contract of their own as knowing nothing of most."""
    there = {module for layer in layers() for module in layer}
    found = [m for c in _contracts() for m in c.get("source_modules", ()) if m not in there]
    return list(dict.fromkeys(found))


def about(module: str) -> str:
    """The first sentence of the docstring of `module`."""
    path = ROOT / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.replace("``", "").replace("`", "").rstrip(".")


def draw() -> str:
    """The picture as SVG."""
    rows = [*layers(), beside()]
    parts: list[str] = []
    top = MARGIN + LINE
    parts.append(
        f'<text class="note" x="{MARGIN}" y="{top - 4}">Each layer may import from those below it, '
        "never from one above; parts side by side in a layer do not know each other.</text>"
    )
    top += GAP
    for row in filter(None, rows):
        apart = row == rows[-1]
        if apart:
            top += GAP
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        texts = [textwrap.wrap(about(module), int((width - 2 * GAP) / 6.9)) for module in row]
        height = 2 * GAP + LINE * (1 + max(map(len, texts)))
        for place, (module, lines) in enumerate(zip(row, texts, strict=True)):
            left = MARGIN + place * (width + GAP)
            kind = ' class="beside"' if apart else ""
            parts.append(
                f'<rect{kind} x="{left:g}" y="{top}" width="{width:g}" height="{height}" rx="6"/>'
            )
            name = module.removeprefix("fwdb.") + (" (beside the layers)" if apart else "")
            parts.append(_text("name", left + GAP, top + GAP + 10, name))
            for n, line in enumerate(lines, start=1):
                parts.append(_text("about", left + GAP, top + GAP + 10 + LINE * n, line))
        top += height + GAP
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + MARGIN - GAP}" '
        'role="img" aria-label="The layers of the package fwdb">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _text(kind: str, left: float, top: float, text: str) -> str:
    return f'<text class="{kind}" x="{left:g}" y="{top:g}">{escape(text)}</text>'


def _contracts() -> list[dict[str, list[str]]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, list[str]]] = settings["tool"]["importlinter"]["contracts"]
    return found


def _contract(key: str) -> dict[str, list[str]]:
    return next(contract for contract in _contracts() if key in contract)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
