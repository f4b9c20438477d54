"""Charts: a frame in, a matplotlib Figure out. Nothing here knows a database.

Every chart has a finding as its title, says below it what is drawn and in which unit, and names
source, window and number of samples in the footer. The finding is computed from the frame.

Colours are those of Okabe and Ito with a fixed meaning: blue is normal, sky the second of its
kind, orange a warning, vermilion critical or DELETE, grey READ or at rest. Red never stands
against green, and no meaning is in the colour alone.

    figure = charts.pool(db.monitor.pool_history("24h"), warning_percent=80)
    charts.to_svg(figure)        # text, the same bytes for the same data
"""

from fwdb.charts.audit import Burst, audit_matrix, audit_trail, entity_actors, entity_history
from fwdb.charts.canvas import alt_text, empty, title_of, to_svg
from fwdb.charts.servers import durations, health, pool, sessions, trends
from fwdb.charts.statements import load_split, query_changes, slow_queries
from fwdb.charts.words import duration, number, share, shorten, window_text

__all__ = [
    "Burst",
    "alt_text",
    "audit_matrix",
    "audit_trail",
    "duration",
    "durations",
    "empty",
    "entity_actors",
    "entity_history",
    "health",
    "load_split",
    "number",
    "pool",
    "query_changes",
    "sessions",
    "share",
    "shorten",
    "slow_queries",
    "title_of",
    "to_svg",
    "trends",
    "window_text",
]
