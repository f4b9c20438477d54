"""`python -m fwdb.cli`."""

from fwdb.cli import main

main()
