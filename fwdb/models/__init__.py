"""What the two databases hold.

`entities` declares each entity once, `registry` says what such a declaration means and lists
them, `monitoring` has the tables of readings, `ids` the way an id of either store fits into the
one uuid column of the audit log.
"""

# With stars, so that an entity is named in `entities` alone.
from fwdb.models.columns import EntityId as EntityId
from fwdb.models.columns import Label as Label
from fwdb.models.entities import *  # noqa: F403
from fwdb.models.ids import *  # noqa: F403
from fwdb.models.registry import *  # noqa: F403
