-- Constants and functions of all scripts. Python puts this file in front of each of them.
--
-- KEYS[1] is the prefix of all keys. ARGV[1] is always the worker that calls the script.
-- scripts.py documents the keys and the invariants.

-- Redis keeps the notifications for a worker that no longer reads them for this time.
local INBOX_SECONDS = 60
-- Redis keeps an unfinished run that has no worker for this time.
local ORPHAN_MS = 24 * 60 * 60 * 1000
-- Redis keeps a refused run for this time: REFUSAL_SECONDS in store.py.
local REFUSED_MS = 10 * 1000

local prefix, me = KEYS[1], ARGV[1]
local WORKERS = prefix .. ':workers'
local KEYS_INDEX = prefix .. ':keys'

local function key(kind, name) return prefix .. ':' .. kind .. ':' .. name end

-- The number as decimal digits. Lua's own conversion writes large numbers as 1e+15.
local function text(number) return string.format('%.0f', number) end

-- The time of Redis's clock, in milliseconds.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Adds a notification, given as names and values, to a worker's inbox. A topic has no worker.
local function notify(worker, ...)
  if worker == '' then return end
  local inbox = key('inbox', worker)
  -- What is no stream was put there by hand. It must not count as damage of the run.
  if redis.call('TYPE', inbox).ok == 'string' then redis.call('DEL', inbox) end
  redis.call('XADD', inbox, 'MAXLEN', '~', 10000, '*', ...)
  redis.call('EXPIRE', inbox, INBOX_SECONDS)
end

-- The run that has a unique key, given as its hash or ''.
local function find_by_key(unique)
  local run = unique ~= '' and redis.pcall('GET', key('unique', unique))
  -- An error is a table: what is no string was put there by hand.
  return type(run) == 'string' and redis.call('EXISTS', key('run', run)) == 1 and run
end

-- Sets how a run has ended. Nobody needs its arguments any more.
local function finish(run, status)
  redis.call('HSET', key('run', run), 'status', status)
  redis.call('HDEL', key('run', run), 'arguments')
end

-- Makes the unique key of a run free for another run.
local function free_key(run)
  local unique = redis.call('HGET', key('run', run), 'unique')
  if unique and redis.call('GET', key('unique', unique)) == run then
    redis.call('DEL', key('unique', unique))
  end
end

-- The indexes that list a run with this owner and key, each with the member that stands for the run.
local function indexes(run, owner, run_key)
  local found = {}
  if owner then found[#found + 1] = {key('owner', owner), run} end
  if run_key then found[#found + 1] = {KEYS_INDEX, run_key .. '\0' .. run} end
  return found
end

-- The run that a member of an index stands for.
local function run_of(member) return string.match(member, '[^%z]*$') end

-- Lets all keys of a run expire after this time. An index expires with the last of its runs.
local function expire(run, milliseconds)
  local fields = redis.call('HMGET', key('run', run), 'unique', 'owner', 'key')
  for _, kind in ipairs({'run', 'log', 'cursors'}) do
    redis.call('PEXPIRE', key(kind, run), milliseconds)
  end
  if fields[1] and redis.call('GET', key('unique', fields[1])) == run then
    redis.call('PEXPIRE', key('unique', fields[1]), milliseconds)
  end
  for _, index in ipairs(indexes(run, fields[2], fields[3])) do
    if redis.call('PTTL', index[1]) < tonumber(milliseconds) then
      redis.call('PEXPIRE', index[1], milliseconds)
    end
  end
end

-- The state of a run, as a list that ends with the cursors. The first item of the list is false
-- (nil in the reply) if there is no such run.
local function state(run)
  local fields = redis.call('HMGET', key('run', run), 'info', 'status', 'producer', 'last',
    'first', 'window', 'retain', 'drops_oldest', 'arguments')
  fields[#fields + 1] = redis.call('HGETALL', key('cursors', run))
  return fields
end
