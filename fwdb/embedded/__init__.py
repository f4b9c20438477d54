"""The two servers that come with fwdb, started and stopped for one project.

`up` starts what does not run, or joins it; `running` only joins; `down` stops. Everything they
know lies in the state folder `.fwdb`, see `fwdb.embedded.home`.
"""

from fwdb.embedded.control import down, remove, up
from fwdb.embedded.doctor import Finding, doctor
from fwdb.embedded.home import find_home
from fwdb.embedded.join import STORES, running
from fwdb.embedded.status import Status, StoreStatus, status
from fwdb.embedded.urls import Servers, Urls

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
