-- Finds the run that has a unique key.
--
-- ARGV: worker, hash of the unique key
-- Returns the run, or false (nil in the reply) if there is none.

return find_by_key(ARGV[2])
