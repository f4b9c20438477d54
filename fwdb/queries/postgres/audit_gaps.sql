-- Times of which the follower of MongoDB did not see each change, newest first.
--
-- The differences it found afterwards are rows of the trail; who made them, and what else happened
-- in between, is not known.
--
--   psql "$FWDB_POSTGRES_URL" -f audit_gaps.sql
--
-- Columns
--   follower     string     the collection
--   since        timestamp  changes up to here are recorded; null when that is not known
--   until        timestamp  changes from here on are recorded
--   reason       string     what happened
--   differences  int64      rows that the comparison added; null when nothing was compared
--   detected_at  timestamp  when it was noticed
SELECT follower, since, until, reason, differences, detected_at
FROM audit.gaps
ORDER BY detected_at DESC, gap_id DESC;
