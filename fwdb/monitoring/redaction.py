"""Statement texts without the values in them."""

from __future__ import annotations

import re

import pandas as pd

# What a statement of PostgreSQL is made of, as far as values may be inside. One pass from left
# to right: an apostrophe in a comment or in a quoted name opens no text. The server cuts long
# statements, so whatever is still open at the end is taken to reach there.
# Source: https://www.postgresql.org/docs/current/sql-syntax-lexical.html
_PARTS = re.compile(
    r"""
      (?P<name>    "(?:[^"]|"")*(?:"|\Z) | \$\d+ )
    | (?P<comment> --[^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<value>   \b[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)
                 | (?:\b[bBnNxX]|\b[uU]&)?'(?:[^']|'')*(?:'|\Z)
                 | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)
                 | (?<![\w$])\.?\d[\w.]* )
    """,
    re.VERBOSE | re.DOTALL,
)

# Lines of a plan whose numbers are no values of a statement; any other is taken to hold some.
# Source: the labels of src/backend/commands/explain.c
_MEASURED = re.compile(
    r"""\s*(?:
        (?:Rows\ Removed\ by\ [A-Z][\w ]*|Heap\ Fetches|Heap\ Blocks|Index\ Searches|Buffers|WAL
        |I/O\ Timings|Sort\ Method|Full-sort\ Groups|Pre-sorted\ Groups|Buckets|Batches|Hits
        |Storage|Workers\ (?:Planned|Launched)|Planned\ Partitions|Subplans\ Removed
        |Planning\ Time|Execution\ Time|Worker\ \d+):\ [^?"]*
        |(?:InitPlan|SubPlan)\ \d+(?:\ \(returns\ [$\d,]+\))?
    )\Z""",
    re.VERBOSE,
)


def redacted(statement: str | None) -> str | None:
    """`statement` on one line, every value in it a ``?``, and without its comments.

    Names stay as they are, and so do parameters like ``$1``. A client that writes values into
    its text must not bring them into a report.

    >>> redacted("SELECT * FROM users WHERE email = 'ana@example.com' AND age > 30 -- Ana")
    'SELECT * FROM users WHERE email = ? AND age > ?'
    """
    if statement is None:
        return None
    found = _PARTS.sub(_without_value, statement)
    return " ".join(found.split())


def redacted_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the texts in its columns ``statement`` and ``…_statement`` redacted."""
    texts = [n for n in frame.columns if n == "statement" or n.endswith("_statement")]
    return frame.assign(
        **{
            name: pd.Series(
                [None if pd.isna(text) else redacted(text) for text in frame[name]],
                index=frame.index,
                dtype=frame[name].dtype,
            )
            for name in texts
        }
    )


def texts_redacted(text: str) -> str:
    """`text` with every quoted value a ``?`` and without comments; lines and numbers stay."""
    return _PARTS.sub(
        lambda part: part[0] if part[0][0] in ".0123456789" else _without_value(part), text
    )


def plan_redacted(plan: str) -> str:
    """A text plan of EXPLAIN, quoted values gone already, without the numbers in conditions.

    What counts or measures stays: costs, rows and times of a node, and lines such as buffers.
    """
    return "\n".join(map(_line_redacted, plan.splitlines()))


def _line_redacted(line: str) -> str:
    if _MEASURED.match(line):
        return line
    # A node: its label may have an expression in it, what is in these brackets has not.
    label, bracket, numbers = line.partition("  (cost=")
    return _PARTS.sub(_without_value, label) + bracket + numbers


def _without_value(part: re.Match[str]) -> str:
    if part["name"] is not None:
        return part[0]
    return " " if part["comment"] is not None else "?"
