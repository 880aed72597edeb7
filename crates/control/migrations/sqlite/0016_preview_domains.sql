-- A domain of the organisation under which the preview has a second name; NULL: it has none.
ALTER TABLE previews ADD COLUMN domain TEXT;
