-- Closes a running run on behalf of any worker, and notifies its producer.
--
-- ARGV: worker, run, status, the `end` event's frame up to its number, the rest of the frame
-- Returns 1, or 0 if the run is not running.

local run, status, head, tail = unpack(ARGV, 2)
local fields = redis.call('HMGET', key('run', run), 'producer', 'status', 'last', 'retain',
  'shared')
if fields[2] ~= 'running' then return 0 end
local last = tonumber(fields[3]) + 1
redis.call('XADD', key('log', run), text(last + 1) .. '-0', 'f', head .. text(last) .. tail,
  's', status)
redis.call('HSET', key('run', run), 'last', text(last), 'status', status)
redis.call('SREM', key('runs', fields[1]), run)
release(fields[5], run)
expire(run, fields[4])
notify(fields[1], 'kind', 'closed', 'run', run)
return 1
