-- Postpones the expiry of an unfinished run. Its producer calls this at intervals.
--
-- ARGV: worker, run
-- Returns 0.

if redis.call('HGET', key('run', ARGV[2]), 'producer') == me then expire(ARGV[2], ORPHAN_MS) end
return 0
