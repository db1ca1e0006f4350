-- Sets or removes the cursor of a worker that has readers of a run. Notifies the producer, and
-- wakes the caller: its blocking XREAD returns, and it can read from another set of runs.
--
-- ARGV: worker, run, the worker whose cursor it is, number of the event at which the cursor is
--       ('': remove the cursor), number of its readers, ms for which a topic is kept or ''
-- Returns the run's status, or 'forgotten' if there is no such run.

local run, worker, after, readers, keep = unpack(ARGV, 2)
notify(me, 'kind', 'wake')
local fields = redis.call('HMGET', key('run', run), 'producer', 'status')
if not fields[1] then return 'forgotten' end
if fields[2] ~= 'running' then return fields[2] end
if after == '' then
  redis.call('HDEL', key('cursors', run), worker)
else
  redis.call('HSET', key('cursors', run), worker, after .. ' ' .. readers)
  redis.call('PEXPIRE', key('cursors', run), ORPHAN_MS)
end
if keep ~= '' then
  local is_watched = redis.call('EXISTS', key('cursors', run)) == 1
  if not is_watched or redis.call('PTTL', key('run', run)) < tonumber(keep) then
    expire(run, keep)
  end
elseif fields[1] ~= me then
  notify(fields[1], 'kind', 'cursor', 'run', run, 'worker', worker, 'after', after,
    'readers', readers)
end
return fields[2]
