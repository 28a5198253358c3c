-- What ended badly, where it is looked for. Registering jobs that wait writes to none of these indexes.

ALTER TABLE jobs ADD COLUMN bad INTEGER NOT NULL DEFAULT 0; -- the status of its build if that is above 0
UPDATE jobs SET bad = (SELECT b.status FROM builds b WHERE b.id = jobs.build)
    WHERE build IN (SELECT id FROM builds WHERE status > 0);
-- The few of an evaluation that people ask for first.
CREATE INDEX jobs_bad ON jobs (evaluation, name, system, build, bad) WHERE bad > 0;

-- With what a search by name narrows and sorts by: builds are read only to be shown.
DROP INDEX builds_ended_by_name;
CREATE INDEX builds_ended_by_name ON builds (nix_name, evaluation, jobset, system, status) WHERE status >= 0;
