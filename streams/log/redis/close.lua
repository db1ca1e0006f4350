-- Closes a running run on behalf of any worker, and notifies its producer.
--
-- ARGV: worker, run, status, whether the end frees the unique key (0 or 1), the `end` event's frame
--       up to its number, the rest of the frame
-- Returns 1, or 0 if the run is not running.

local run, status, frees_key, head, tail = unpack(ARGV, 2)
local fields = redis.call('HMGET', key('run', run), 'producer', 'status', 'last', 'retain')
if fields[2] ~= 'running' then return 0 end
local last = tonumber(fields[3]) + 1
redis.call('XADD', key('log', run), text(last + 1) .. '-0', 'f', head .. text(last) .. tail,
  's', status)
redis.call('HSET', key('run', run), 'last', text(last))
finish(run, status)
redis.call('SREM', key('runs', fields[1]), run)
if frees_key == '1' then free_key(run) end
expire(run, fields[4])
notify(fields[1], 'kind', 'closed', 'run', run)
return 1
