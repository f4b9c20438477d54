"""Homes of the tests of the built-in servers."""

from support.embedded import home, shared

__all__ = ["home", "shared"]
