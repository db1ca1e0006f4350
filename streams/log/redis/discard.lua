-- Deletes a run, and notifies its producer and every worker that has readers of it.
--
-- ARGV: worker, run
-- Returns 1, or 0 if there is no such run.

local run = ARGV[2]
local fields = redis.call('HMGET', key('run', run), 'producer', 'shared')
if not fields[1] then return 0 end
for _, worker in ipairs(redis.call('HKEYS', key('cursors', run))) do
  notify(worker, 'kind', 'forgotten', 'run', run)
end
if fields[1] ~= me then notify(fields[1], 'kind', 'forgotten', 'run', run) end
redis.call('SREM', key('runs', fields[1]), run)
release(fields[2], run)
redis.call('DEL', key('run', run), key('log', run), key('cursors', run))
return 1
