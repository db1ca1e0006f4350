-- Appends an event to a topic: to the run with a unique key. Creates the run, with its `start`
-- event, if there is none.
--
-- ARGV: worker, run, info (JSON), window in bytes, retain in ms, hash of the unique key, ms for which
--       the topic is kept at least, frame of the `start` event, token of the call, whether an
--       earlier call with the token may have succeeded (0 or 1), status or '', the event's frame
--       after its number, or '' for no event
-- Returns the run, the number of the event (or of the newest one), 1 if the topic had ended, and the
-- run that was dropped because no event can follow what is there, or ''.
--
-- With a status, the event is the `end`. The script drops the oldest events beyond the window, but
-- looks at no more than EVICTED of them, so that no call takes long.

local EVICTED = 512

local run, info, window, retain, unique, keep, start, token, repeated, status, tail =
  unpack(ARGV, 2)

-- The last and the first number of the topic, its size, its window, its `retain`, and its status; or
-- nothing, if it is not as this script has left it. What a failing pcall returns has no items.
local function state_of(found)
  local fields = redis.pcall('HMGET', key('run', found), 'last', 'first', 'size', 'window',
    'retain', 'status', 'info')
  local newest = redis.pcall('XREVRANGE', key('log', found), '+', '-', 'COUNT', 1)[1]
  local named = '{"run":"' .. found .. '",'
  if not newest or not fields[7] or fields[7]:sub(1, #named) ~= named then return end
  for i = 1, 5 do
    local number = tonumber(fields[i])
    if not number or number < 0 or number >= 2^53 or number % 1 ~= 0 then return end
    fields[i] = number
  end
  local last, first, _, _, _, status = unpack(fields)
  local entry_id, event = unpack(newest)
  local head = 'id: ' .. found .. '.' .. text(last) .. '\n'
  local ending = event[3] == 's' and event[4] or 'running'
  if entry_id == text(last + 1) .. '-0' and event[2]:sub(1, #head) == head and first <= last
    and ending == status then return fields end
end

-- Deletes a topic, and notifies every worker that has readers of it.
local function drop(found)
  for _, worker in ipairs(redis.pcall('HKEYS', key('cursors', found))) do
    notify(worker, 'kind', 'forgotten', 'run', found)
  end
  redis.call('DEL', key('run', found), key('log', found), key('cursors', found))
end

local found, dropped = find_by_key(unique), ''
local state = found and state_of(found)
if found and not state then
  drop(found)
  dropped = found
end
if state then
  run = found
else
  state = {0, 0, #start, tonumber(window), retain, 'running'}
  redis.call('HSET', key('run', run), 'info', info, 'status', 'running', 'producer', '',
    'last', 0, 'first', 0, 'window', window, 'retain', retain, 'drops_oldest', 1,
    'unique', unique, 'size', #start)
  redis.call('XADD', key('log', run), '1-0', 'f', start)
  redis.call('SET', key('unique', unique), run)
end
local log = key('log', run)
if repeated == '1' then
  for _, entry in ipairs(redis.call('XREVRANGE', log, '+', '-')) do
    if entry[2][4] == token then
      return {run, text(tonumber(string.match(entry[1], '^%d+')) - 1), 0, dropped}
    end
  end
end
local last, first, size, held, retained, ending = unpack(state)
if ending ~= 'running' then return {run, text(last), 1, dropped} end
if tail ~= '' then
  last = last + 1
  local frame = 'id: ' .. run .. '.' .. text(last) .. tail
  local mark, value = 't', token
  if status ~= '' then mark, value = 's', status end
  redis.call('XADD', log, text(last + 1) .. '-0', 'f', frame, mark, value)
  size = size + #frame
  if size > held then
    -- An eighth more than needed, so that it happens less often.
    local goal = held * 7 / 8
    for _, entry in ipairs(redis.call('XRANGE', log, '-', '+', 'COUNT', EVICTED)) do
      if size <= goal or first == last then break end
      size, first = size - #entry[2][2], first + 1
    end
    redis.call('XTRIM', log, 'MINID', text(first + 1) .. '-0')
  end
  redis.call('HSET', key('run', run), 'last', text(last), 'first', text(first), 'size', text(size))
end
if status ~= '' then
  redis.call('HSET', key('run', run), 'status', status)
  expire(run, retained)
elseif redis.call('PTTL', key('run', run)) < tonumber(keep) then
  expire(run, keep)
end
return {run, text(last), 0, dropped}
