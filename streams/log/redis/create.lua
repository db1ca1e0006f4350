-- Creates a run, unless another run has the same unique key. A caller whose reply was lost can
-- repeat the call.
--
-- ARGV: worker, run, info (JSON), window in bytes, retain in ms, drops_oldest (0 or 1), lease in ms,
--       hash of the unique key or '', owner or '', key or '', time of its start in µs, arguments
--       or ''
-- Returns the run, or the one that has the unique key.

local run, info, window, retain, drops_oldest, lease, unique, owner, run_key, started, arguments =
  unpack(ARGV, 2)
local other = find_by_key(unique)
if other then return other end
redis.call('HSET', key('run', run), 'info', info, 'status', 'running', 'producer', me,
  'last', -1, 'first', 0, 'window', window, 'retain', retain, 'drops_oldest', drops_oldest)
if arguments ~= '' then redis.call('HSET', key('run', run), 'arguments', arguments) end
redis.call('SADD', key('runs', me), run)
redis.call('ZADD', WORKERS, 'NX', now() + lease, me)
if unique ~= '' then
  redis.call('HSET', key('run', run), 'unique', unique)
  redis.call('SET', key('unique', unique), run)
end
if owner ~= '' or run_key ~= '' then
  redis.call('HSET', key('run', run), 'started', started)
  if owner ~= '' then redis.call('HSET', key('run', run), 'owner', owner) end
  if run_key ~= '' then redis.call('HSET', key('run', run), 'key', run_key) end
  for _, index in ipairs(indexes(run, owner ~= '' and owner, run_key ~= '' and run_key)) do
    redis.call('ZADD', index[1], 0, index[2])
    -- Runs that are gone leave the index at random, faster than others come.
    for _, member in ipairs(redis.call('ZRANDMEMBER', index[1], 3)) do
      if redis.call('EXISTS', key('run', run_of(member))) == 0 then
        redis.call('ZREM', index[1], member)
      end
    end
  end
end
expire(run, ORPHAN_MS)
return run
