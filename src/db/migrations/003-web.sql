-- What the web interface reads by. Registering an evaluation writes none of these: builds that wait are left out.

CREATE INDEX builds_ended ON builds (evaluation) WHERE status >= 0;
CREATE INDEX builds_ended_by_status ON builds (status, evaluation) WHERE status > 0;
CREATE INDEX builds_ended_by_system ON builds (system, evaluation) WHERE status >= 0;
CREATE INDEX builds_ended_by_name ON builds (nix_name) WHERE status >= 0;
CREATE INDEX builds_ended_by_worker ON builds (worker, stoptime) WHERE worker IS NOT NULL AND status >= 0;
-- Builds that broke or mended their job, for feeds.
CREATE INDEX builds_changed ON builds (evaluation) WHERE weather IN (0, 1);
CREATE INDEX products_by_type ON products (type, build);
