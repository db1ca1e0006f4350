-- Loads events of a run.
--
-- ARGV: worker, run, number of the event after which to begin, maximum number of events
-- Returns stream entries, as XRANGE does.

return redis.call('XRANGE', key('log', ARGV[2]), text(ARGV[3] + 2) .. '-0', '+', 'COUNT', ARGV[4])
