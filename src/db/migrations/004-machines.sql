-- Where remote builds were built: the names of workers are new at each of their starts, and go with them.

ALTER TABLE builds ADD COLUMN machine TEXT;
CREATE INDEX builds_ended_by_machine ON builds (machine, stoptime) WHERE machine IS NOT NULL AND status >= 0;
