"""`Audit`: writes the trail in the transaction of the change, and answers questions about it."""

from __future__ import annotations

from fwdb.arguments import checks_arguments
from fwdb.audit.anomalies import Anomalies
from fwdb.audit.archived import Archived
from fwdb.audit.coverage import Coverage
from fwdb.audit.draining import Draining
from fwdb.audit.following import Following
from fwdb.audit.holds import Holds
from fwdb.audit.lives import Lives
from fwdb.audit.proof import Proof
from fwdb.audit.recording import Recording
from fwdb.audit.retention import Keeping
from fwdb.audit.reverting import Reverting
from fwdb.audit.time_travel import TimeTravel

__all__ = ["Audit"]


@checks_arguments
class Audit(
    Reverting,
    Draining,
    Following,
    Recording,
    Anomalies,
    TimeTravel,
    Lives,
    Archived,
    Proof,
    Keeping,
    Holds,
    Coverage,
):
    """Who did what to what, and when: the table `audit.audit_logs`.

    The `log_…` methods belong inside ``with db.transaction()`` beside the change they describe:
    they join it, so both are kept or neither is. They raise what the database says and never
    hide it. Outside a transaction each commits by itself. A design lives in MongoDB, which a
    PostgreSQL transaction cannot include.

    Questions come back as DataFrames whose columns and types do not depend on the answer. Times
    are UTC; `since` is part of a window, `until` is not. Rows written by other programs are read
    too, also those of other kinds; passwords and the like in them are shown as ``[redacted]``.
    """
