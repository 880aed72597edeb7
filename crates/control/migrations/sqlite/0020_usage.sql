-- What sandboxes took, and when. A row begins and ends in the transaction that changes the sandbox; the open one of a
-- sandbox (`ended_at` NULL) is what it takes now. Rows stay when the sandbox has ended.
CREATE TABLE usage_spans (
    sandbox_id TEXT    NOT NULL REFERENCES sandboxes (id),
    org_id     TEXT    NOT NULL,
    started_at INTEGER NOT NULL,
    -- While it is open: when a server last saw that it is. What ended while none was there ended then.
    seen_at    INTEGER NOT NULL,
    ended_at   INTEGER,
    -- 0 while it sleeps.
    memory_mb  INTEGER NOT NULL,
    disk_mb    INTEGER NOT NULL
) STRICT;

CREATE INDEX usage_spans_window ON usage_spans (org_id, ended_at);
CREATE INDEX usage_spans_sandbox ON usage_spans (sandbox_id, started_at);
CREATE UNIQUE INDEX usage_spans_open ON usage_spans (sandbox_id) WHERE ended_at IS NULL;

-- What each sandbox takes now. Disk counts beyond what every sandbox has; one that sleeps and has no more takes nothing.
CREATE VIEW usage_now AS
SELECT id AS sandbox_id, org_id, CASE observed WHEN 'running' THEN memory_mb ELSE 0 END AS memory_mb, disk_mb
FROM sandboxes
WHERE observed = 'running' OR (observed = 'hibernated' AND disk_mb > 20480);

-- Memory in use, as it was looked at. Samples in a row that are about the same are one row.
CREATE TABLE usage_samples (
    sandbox_id TEXT    NOT NULL REFERENCES sandboxes (id),
    first_at   INTEGER NOT NULL,
    last_at    INTEGER NOT NULL,
    samples    INTEGER NOT NULL,
    sum_kb     INTEGER NOT NULL,
    peak_kb    INTEGER NOT NULL,
    PRIMARY KEY (sandbox_id, first_at)
) STRICT;
