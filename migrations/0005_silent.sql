-- An edge that was struck off for its silence alone is not proven dead: it may be registered again.
ALTER TABLE edges ADD COLUMN returns boolean NOT NULL DEFAULT false;
