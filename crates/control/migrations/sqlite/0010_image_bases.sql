-- What the base of an image in a registry was when it was first built: the digest of its manifest. Its tag may move; what is
-- built again, or for the other isolation, starts from this. NULL: its base is something else, or the row is older than this.
ALTER TABLE images ADD COLUMN base_digest TEXT;

-- What references stood for when an organisation last asked a registry that answered: what it may go on with while that
-- registry does not answer.
CREATE TABLE image_references (
    org_id    TEXT    NOT NULL REFERENCES orgs (id),
    reference TEXT    NOT NULL,
    digest    TEXT    NOT NULL,
    asked_at  INTEGER NOT NULL,
    PRIMARY KEY (org_id, reference)
) STRICT;
