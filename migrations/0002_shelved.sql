-- Whether a segment was ever put on the shelf: set once, before Redis is told. Only what never was
-- may be preloaded from nothing; afterwards missing data is lost data, and the segment is rebuilt.
ALTER TABLE segments ADD COLUMN shelved_at timestamptz;
