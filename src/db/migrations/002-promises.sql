-- What was promised to whoever asked for it, and is to be kept by the next life of the daemon.

ALTER TABLE jobsets ADD COLUMN look_wanted INTEGER NOT NULL DEFAULT 0; -- 1: its channels are to be looked at

-- Evaluations whose commits are to be evaluated again.
CREATE TABLE retries (
    evaluation INTEGER PRIMARY KEY REFERENCES evaluations ON DELETE CASCADE
) STRICT;
