-- Lists the unfinished runs that a worker produces.
--
-- ARGV: worker, the worker whose runs to list
-- Returns the ids of the runs.

return redis.call('SMEMBERS', key('runs', ARGV[2]))
