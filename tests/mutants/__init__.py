"""Faults that the suite must notice: behaviours that users rely on, each with one way to break it.

`mutants.toml` describes them. ``python -m tests.mutants`` breaks one after the other in a copy of
the tree and runs the tests that should fail.
"""
