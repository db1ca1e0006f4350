-- Appends frames to a run that is running and has the caller as its producer.
--
-- ARGV: worker, run, number of the first frame, newest event that may be evicted (-2: none),
--       status or '', whether the end frees the unique key (0 or 1), whether it may evict what
--       readers of other workers have not had (0 or 1), frames...
-- With a status, the last frame is the `end` event, and the script closes the run.
-- Returns
--   {'committed', last, first}  the newest and the oldest event that the run has now
--   {'missing', last}           events between `last` and the first frame are missing: send them
--   {'fenced'}                  the run is closed, or another worker is its producer
--   {'forgotten'}               there is no such run
--
-- The script skips frames that the run has already, so a caller whose reply was lost can repeat
-- the call.

local run, number, evict, status = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local fields = redis.call('HMGET', key('run', run), 'producer', 'status', 'last', 'first',
  'retain')
if not fields[1] then return {'forgotten'} end
if fields[1] ~= me or fields[2] ~= 'running' then return {'fenced'} end
local last, first = tonumber(fields[3]), tonumber(fields[4])
if number > last + 1 then return {'missing', text(last)} end
for i = 8, #ARGV do
  if number > last then
    local id = text(number + 1) .. '-0'
    if i == #ARGV and status ~= '' then
      redis.call('XADD', key('log', run), id, 'f', ARGV[i], 's', status)
    else
      redis.call('XADD', key('log', run), id, 'f', ARGV[i])
    end
    last = number
  end
  number = number + 1
end
if evict >= first then
  local cursors = ARGV[7] == '0' and redis.call('HVALS', key('cursors', run)) or {}
  for _, cursor in ipairs(cursors) do
    evict = math.min(evict, tonumber(string.match(cursor, '^%S+')))
  end
  if evict >= first then
    redis.call('XTRIM', key('log', run), 'MINID', text(evict + 2) .. '-0')
    first = evict + 1
  end
end
redis.call('HSET', key('run', run), 'last', text(last), 'first', text(first))
-- The first XADD creates the stream, which does not expire yet.
if redis.call('PTTL', key('log', run)) < 0 then expire(run, ORPHAN_MS) end
if status ~= '' then
  finish(run, status)
  redis.call('SREM', key('runs', me), run)
  if ARGV[6] == '1' then free_key(run) end
  expire(run, status == 'refused' and REFUSED_MS or fields[5])
end
return {'committed', text(last), text(first)}
