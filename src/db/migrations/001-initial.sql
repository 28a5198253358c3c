-- The whole schema. Times are Unix seconds; null means not yet.

CREATE TABLE jobsets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    specification TEXT NOT NULL,   -- JSON, secrets included
    active INTEGER NOT NULL,       -- 0 or 1
    created INTEGER NOT NULL,
    last_checked INTEGER,          -- when its channels were last looked at with success
    error TEXT                     -- why the last fetch or evaluation did not work
) STRICT;

CREATE TABLE evaluations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    jobset TEXT NOT NULL REFERENCES jobsets (name) ON DELETE CASCADE,
    status INTEGER NOT NULL,       -- -1 started, 0 succeeded, 1 failed, 2 aborted
    fingerprint TEXT NOT NULL,     -- SHA-256 of the commits and of what in the specification decides jobs
    interrupted INTEGER NOT NULL DEFAULT 0, -- 1: aborted by a stop or crash, to be repeated
    timestamp INTEGER NOT NULL,    -- when the monitor decided to fetch
    checkouttime INTEGER,          -- when the channels were there
    evaltime INTEGER,              -- when the evaluator ended
    error TEXT,
    total INTEGER NOT NULL DEFAULT 0,     -- jobs, and below by the status of their build
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,    -- failed dependencies included
    pending INTEGER NOT NULL DEFAULT 0,
    aborted INTEGER NOT NULL DEFAULT 0,
    canceled INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX evaluations_by_jobset ON evaluations (jobset, id);
CREATE INDEX evaluations_started ON evaluations (id) WHERE status = -1;
CREATE INDEX evaluations_by_timestamp ON evaluations (timestamp);

-- Every channel's commit for every evaluation.
CREATE TABLE checkouts (
    evaluation INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    position INTEGER NOT NULL,     -- in the specification, from 0
    channel TEXT NOT NULL,
    url TEXT NOT NULL,
    "commit" TEXT NOT NULL,
    tree TEXT NOT NULL,            -- the commit's tree id
    directory TEXT NOT NULL,
    PRIMARY KEY (evaluation, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX checkouts_by_directory ON checkouts (directory);

CREATE TABLE builds (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    derivation TEXT NOT NULL UNIQUE, -- the build's identity
    evaluation INTEGER NOT NULL,   -- introduced it; moved to another when that one is deleted
    jobset TEXT NOT NULL,          -- of that evaluation
    job TEXT NOT NULL,
    system TEXT NOT NULL,
    kind INTEGER NOT NULL,         -- 0 process, 1 derivation, 2 error
    nix_name TEXT NOT NULL,
    status INTEGER NOT NULL,       -- Cuirass's numbers
    weather INTEGER NOT NULL DEFAULT -1,
    last_status INTEGER,           -- of the job's build before, that weather was computed with
    priority INTEGER NOT NULL,     -- lower first
    timeout INTEGER NOT NULL,      -- seconds; 0 for none
    max_silent INTEGER NOT NULL,   -- seconds; 0 for none
    attempts INTEGER NOT NULL DEFAULT 0,    -- tries begun since it was last asked for
    attempt INTEGER NOT NULL DEFAULT 0,     -- tries begun ever: the number late reports are known by
    deaths INTEGER NOT NULL DEFAULT 0,      -- daemon deaths in a row that it was running at
    retry_at INTEGER,              -- not before: the backoff after an abort
    canceled_by TEXT,              -- for status 4: name, dependency, evaluation, superseded, expired, jobset
    worker TEXT,
    log TEXT,
    error TEXT,
    timestamp INTEGER NOT NULL,    -- registered
    queued INTEGER NOT NULL,       -- last asked for: registered, or scheduled again after it had ended
    starttime INTEGER,
    stoptime INTEGER,
    expired INTEGER NOT NULL DEFAULT 0 -- 1: it succeeded, but what it left has been removed since
) STRICT;
CREATE INDEX builds_pending ON builds (status, priority, timestamp, id) WHERE status < 0;
CREATE INDEX builds_by_evaluation ON builds (evaluation);
CREATE INDEX builds_ended_badly ON builds (status, id) WHERE status > 0;
CREATE INDEX builds_by_timestamp ON builds (timestamp);
CREATE INDEX builds_with_products ON builds (stoptime) WHERE kind = 0 AND status = 0 AND expired = 0;
CREATE INDEX builds_by_stoptime ON builds (stoptime) WHERE stoptime IS NOT NULL;

-- What a process build runs.
CREATE TABLE process_builds (
    build INTEGER PRIMARY KEY REFERENCES builds ON DELETE CASCADE,
    work TEXT NOT NULL             -- JSON: command, environment, products, needs (names), identities (of those)
) STRICT;

-- Which build each job of an evaluation points to.
CREATE TABLE jobs (
    evaluation INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    name TEXT NOT NULL,
    system TEXT NOT NULL,
    build INTEGER NOT NULL REFERENCES builds,
    jobset INTEGER NOT NULL,       -- the evaluation's, as jobsets.id: for the indexes below
    PRIMARY KEY (evaluation, name, system)
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_build ON jobs (build, evaluation);
CREATE INDEX jobs_by_jobset ON jobs (jobset, build);
CREATE INDEX jobs_by_name ON jobs (jobset, name, system, evaluation, build);

-- Builds that lost a job when its evaluation was removed: those that have none left can go.
CREATE TABLE orphans (
    build INTEGER PRIMARY KEY REFERENCES builds ON DELETE CASCADE
) STRICT;

CREATE TABLE outputs (
    build INTEGER NOT NULL REFERENCES builds ON DELETE CASCADE,
    name TEXT NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (build, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX outputs_by_path ON outputs (path);

CREATE TABLE products (
    id INTEGER PRIMARY KEY,
    build INTEGER NOT NULL REFERENCES builds ON DELETE CASCADE,
    type TEXT NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,         -- bytes
    sha256 TEXT,                   -- hexadecimal, of a single file
    UNIQUE (build, path)
) STRICT;

-- `source` needs `target`.
CREATE TABLE dependencies (
    source INTEGER NOT NULL REFERENCES builds ON DELETE CASCADE,
    target INTEGER NOT NULL REFERENCES builds ON DELETE CASCADE,
    PRIMARY KEY (source, target)
) STRICT, WITHOUT ROWID;
CREATE INDEX dependencies_by_target ON dependencies (target, source);

CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    address TEXT NOT NULL,
    machine TEXT NOT NULL,
    systems TEXT NOT NULL,         -- separated by blanks
    last_seen INTEGER NOT NULL,
    joined INTEGER NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0, -- aborted builds in a row
    paused INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE metrics (
    type INTEGER NOT NULL,         -- Cuirass's numbers, 0 to 12
    field TEXT NOT NULL,
    value REAL NOT NULL,
    timestamp INTEGER NOT NULL,
    PRIMARY KEY (type, field)
) STRICT, WITHOUT ROWID;

CREATE TABLE notifications (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    build INTEGER NOT NULL REFERENCES builds ON DELETE CASCADE,
    notification TEXT NOT NULL,    -- its JSON in the specification
    word TEXT NOT NULL,            -- broken or fixed
    created INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    retry_at INTEGER NOT NULL,
    error TEXT                     -- of the last try
) STRICT;
CREATE INDEX notifications_due ON notifications (retry_at, id);
CREATE INDEX notifications_by_build ON notifications (build);

CREATE TABLE dashboards (
    id TEXT PRIMARY KEY,           -- 16 random alphanumerics
    jobset TEXT NOT NULL REFERENCES jobsets (name) ON DELETE CASCADE,
    jobs TEXT NOT NULL             -- separated by commas
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL UNIQUE,     -- SHA-256 of the secret, hexadecimal
    role TEXT NOT NULL,
    jobset TEXT,                   -- limits it to one; null for all
    created INTEGER NOT NULL,
    expires INTEGER,
    last_used INTEGER
) STRICT;

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    who TEXT NOT NULL,             -- uid of the peer, and for whom it acted
    command TEXT NOT NULL,         -- without secrets
    outcome TEXT NOT NULL
) STRICT;

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    event TEXT NOT NULL,
    jobset TEXT,
    evaluation INTEGER,
    build INTEGER,
    status TEXT
) STRICT;

-- Small facts that outlive the process: paused.builds, paused.evaluations.
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
