-- How often the store was opened: one row, written each time to see that a write is noticed.
CREATE TABLE starts (
    id    INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    count INTEGER NOT NULL
) STRICT;
