-- Months of the audit trail that must be kept, oldest first; `released` adds those that no longer must.
--
--   psql "$FWDB_POSTGRES_URL" -v released=false -f audit_holds.sql
--
-- Columns
--   month        string     2025-10
--   held_at      timestamp  when the hold was set
--   held_by      string     the database role that set it
--   reason       string     why; null when not given
--   released_at  timestamp  when it ended; null while held
--   released_by  string     the database role that ended it
SELECT
    to_char(month, 'YYYY-MM') AS month,
    held_at,
    held_by,
    reason,
    released_at,
    released_by
FROM audit.holds
WHERE released_at IS NULL OR CAST(:released AS boolean)
ORDER BY holds.month, held_at;
