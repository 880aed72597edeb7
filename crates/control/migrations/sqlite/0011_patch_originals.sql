-- A patch of an image is a patch of its checkpoint in each isolation: of the copies, the id of the patch that was made first.
ALTER TABLE checkpoint_patches ADD COLUMN original TEXT;

CREATE INDEX checkpoint_patches_original ON checkpoint_patches (original) WHERE original IS NOT NULL;
