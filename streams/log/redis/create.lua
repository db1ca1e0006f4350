-- Creates a run, unless another run has the same unique key. A caller whose reply was lost can
-- repeat the call.
--
-- ARGV: worker, run, info (JSON), window in bytes, retain in ms, drops_oldest (0 or 1), hash of the
--       unique key or '', lease in ms
-- Returns the run, or the one that has the unique key.

local run, info, window, retain, drops_oldest, unique, lease = unpack(ARGV, 2)
local other = find_by_key(unique)
if other then return other end
redis.call('HSET', key('run', run), 'info', info, 'status', 'running', 'producer', me,
  'last', -1, 'first', 0, 'window', window, 'retain', retain, 'drops_oldest', drops_oldest,
  'unique', unique)
redis.call('SADD', key('runs', me), run)
redis.call('ZADD', WORKERS, 'NX', now() + lease, me)
if unique ~= '' then redis.call('SET', key('unique', unique), run) end
expire(run, ORPHAN_MS)
return run
