"""Fashion Wallet's two databases, PostgreSQL and MongoDB, as data frames, charts and reports.

>>> import fwdb
>>> db = fwdb.connect()                          # doctest: +SKIP
>>> db.users.find(role="designer")               # doctest: +SKIP
>>> fwdb.report("pool", since="24h")             # doctest: +SKIP
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as type checkers know it; the module takes longer to load than all of this
if TYPE_CHECKING:
    from typing import Any

    from fwdb import charts, errors
    from fwdb.database import Database, connect
    from fwdb.errors import FwdbError
    from fwdb.measure import Measure
    from fwdb.reports import open_report, report

__all__ = [
    "Database",
    "FwdbError",
    "Measure",
    "charts",
    "connect",
    "errors",
    "open_report",
    "report",
]

# Loaded at first use: `fwdb --help` and `import fwdb` need neither pandas nor matplotlib.
_HOMES = {
    "Database": "database",
    "FwdbError": "errors",
    "Measure": "measure",
    "connect": "database",
    "open_report": "reports",
    "report": "reports",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fwdb' has no attribute '{name}'")
    home = importlib.import_module(f"fwdb.{_HOMES.get(name, name)}")
    return getattr(home, name) if name in _HOMES else home


def __dir__() -> list[str]:
    return sorted(__all__)
