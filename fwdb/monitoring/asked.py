"""What questions are asked with."""

from __future__ import annotations

from typing import Annotated

DATABASES = ("postgres", "mongodb")
APPLICATION = "fwdb-monitor"

Database = Annotated[str, DATABASES]
