-- Loads the state of a run.
--
-- ARGV: worker, run
-- Returns the list of state() in common.lua.

return state(ARGV[2])
