"""The two servers that come with fwdb, started and stopped for one project.

`up` starts what does not run, or joins it; `running` only joins; `down` stops. Everything they
know lies in the state folder `.fwdb`, see `fwdb.embedded.home`.
"""

from fwdb.embedded.control import STORES, Servers, down, remove, running, up
from fwdb.embedded.home import find_home
from fwdb.embedded.server import Urls
from fwdb.embedded.status import Finding, Status, StoreStatus, doctor, status

__all__ = [
    "STORES",
    "Finding",
    "Servers",
    "Status",
    "StoreStatus",
    "Urls",
    "doctor",
    "down",
    "find_home",
    "remove",
    "running",
    "status",
    "up",
]
