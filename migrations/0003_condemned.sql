-- An operator's word that an edge is dead, which nothing else proves. The leading warden strikes it off
-- while it is silent.
ALTER TABLE edges ADD COLUMN condemned_at timestamptz, ADD COLUMN condemned_why text;
