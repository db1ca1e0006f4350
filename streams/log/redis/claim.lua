-- Makes the caller the producer of a running run whose producer has left or lost its lease.
--
-- ARGV: worker, run, the producer so far
-- Returns the state of the run, as state() in common.lua, or false (nil in the reply) if the
-- caller may not have it: its producer lives, another worker has claimed it, or it is closed.
--
-- A caller that is the producer already gets the state again, so it can repeat the call.

local run, from = ARGV[2], ARGV[3]
local lease = redis.call('ZSCORE', WORKERS, from)
if lease and tonumber(lease) > now() then return false end
local fields = redis.call('HMGET', key('run', run), 'producer', 'status')
if fields[1] == me and fields[2] == 'running' then return state(run) end
if fields[1] ~= from or fields[2] ~= 'running' then
  if fields[1] ~= from or not fields[2] then redis.call('SREM', key('runs', from), run) end
  return false
end
redis.call('HSET', key('run', run), 'producer', me)
redis.call('SREM', key('runs', from), run)
redis.call('SADD', key('runs', me), run)
redis.call('HDEL', key('cursors', run), me, from)
notify(from, 'kind', 'claimed', 'run', run)
return state(run)
