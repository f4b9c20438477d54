"""The two servers that come with fwdb, started and stopped for one project.

`up` starts what does not run, or joins it; `running` only joins; `down` stops. Everything they
know lies in the state folder `.fwdb`, see `fwdb.embedded.home`.
"""

from fwdb.embedded.home import find_home
from fwdb.embedded.launch import STORES, down, running, up
from fwdb.embedded.urls import Servers, Urls

__all__ = ["STORES", "Servers", "Urls", "down", "find_home", "running", "up"]
