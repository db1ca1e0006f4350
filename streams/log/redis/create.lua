-- Creates a run, unless its id exists or another running run has the same shared key.
--
-- ARGV: worker, run, info (JSON), number of the event before the first one, window in bytes,
--       retain in ms, drops_oldest (0 or 1), shared key or '', lease in ms
-- Returns {'created'}, {'exists'}, or {'other', run} with the run that has the shared key.

local run, info, after, window, retain, drops_oldest, shared_key, lease = unpack(ARGV, 2)
if shared_key ~= '' then
  local other = redis.call('GET', key('shared', shared_key))
  if other and redis.call('HGET', key('run', other), 'status') == 'running' then
    return {'other', other}
  end
end
if redis.call('EXISTS', key('run', run)) == 1 then return {'exists'} end
redis.call('HSET', key('run', run), 'info', info, 'status', 'running', 'producer', me,
  'after', after, 'last', after, 'first', text(after + 1), 'window', window, 'retain', retain,
  'drops_oldest', drops_oldest, 'shared', shared_key)
redis.call('SADD', key('runs', me), run)
redis.call('ZADD', WORKERS, 'NX', now() + lease, me)
if shared_key ~= '' then redis.call('SET', key('shared', shared_key), run, 'PX', ORPHAN_MS) end
expire(run, ORPHAN_MS)
return {'created'}
