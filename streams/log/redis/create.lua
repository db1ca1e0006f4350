-- Creates a run, unless another running run has the same shared key. A caller whose reply was lost
-- can repeat the call.
--
-- ARGV: worker, run, info (JSON), window in bytes, retain in ms, drops_oldest (0 or 1), shared key
--       or '', lease in ms
-- Returns the run, or the one that has the shared key.

local run, info, window, retain, drops_oldest, shared_key, lease = unpack(ARGV, 2)
if shared_key ~= '' then
  local other = redis.call('GET', key('shared', shared_key))
  if other and redis.call('HGET', key('run', other), 'status') == 'running' then
    return other
  end
end
redis.call('HSET', key('run', run), 'info', info, 'status', 'running', 'producer', me,
  'last', -1, 'first', 0, 'window', window, 'retain', retain, 'drops_oldest', drops_oldest,
  'shared', shared_key)
redis.call('SADD', key('runs', me), run)
redis.call('ZADD', WORKERS, 'NX', now() + lease, me)
if shared_key ~= '' then redis.call('SET', key('shared', shared_key), run, 'PX', ORPHAN_MS) end
expire(run, ORPHAN_MS)
return run
