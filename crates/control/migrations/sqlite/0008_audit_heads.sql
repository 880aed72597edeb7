-- The newest audit record of each organisation, kept apart from the records: without it, records cut off at the end would not be
-- missed. `mac` is made with `audit.key`.
CREATE TABLE audit_heads (
    org  TEXT    NOT NULL PRIMARY KEY,
    seq  INTEGER NOT NULL,
    hash TEXT    NOT NULL,
    mac  TEXT    NOT NULL,
    at   INTEGER NOT NULL
) STRICT;
