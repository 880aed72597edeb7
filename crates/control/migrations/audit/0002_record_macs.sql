-- The proof that this installation wrote a record: HMAC under `audit.key` over organisation, number and hash. Records from before
-- there was one have none; the hash of the first that has one covers them.
ALTER TABLE audit ADD COLUMN mac TEXT;
