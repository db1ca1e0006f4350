-- Deletes a run, and notifies its producer and every worker that has readers of it.
--
-- ARGV: worker, run
-- Returns 1, or 0 if there is no such run.

local run = ARGV[2]
local producer = redis.call('HGET', key('run', run), 'producer')
if not producer then return 0 end
for _, worker in ipairs(redis.call('HKEYS', key('cursors', run))) do
  notify(worker, 'kind', 'forgotten', 'run', run)
end
if producer ~= me then notify(producer, 'kind', 'forgotten', 'run', run) end
redis.call('SREM', key('runs', producer), run)
free_key(run)
redis.call('DEL', key('run', run), key('log', run), key('cursors', run))
return 1
