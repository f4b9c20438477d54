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


def _without_value(part: re.Match[str]) -> str:
    if part["name"] is not None:
        return part[0]
    return " " if part["comment"] is not None else "?"
