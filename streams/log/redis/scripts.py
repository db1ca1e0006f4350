"""What happens inside Redis: every change of a run's state is one of these scripts, so is atomic.

The law of this file: only the worker named as a run's producer adds to it, in order and without
holes, and only while it is running; who was superseded is refused here. The keys, under a prefix:

    run:<run>       hash    info, status, producer, first and last event, policy, shared key
    log:<run>       stream  event n is entry (n+1)-0: its frame, and at the end the status
    place:<run>     hash    worker with readers -> what its slowest has had, and how many they are
    shared:<key>    string  the running run with that key
    workers         zset    worker -> when its lease ends, in ms of Redis's clock; 0: it has left
    runs:<worker>   set     what it produces, unfinished
    inbox:<worker>  stream  what it is told: closed, taken, gone, place, left, wake

Redis_run.py and redis_log.py call them. Redis 6.2 or newer, or Valkey; not a cluster, as a script
touches keys of several slots.
"""

import hashlib

ORPHAN_SECONDS = 86_400
"""An unfinished run whose workers are all gone waits this long for one to come."""

INBOX_SECONDS = 60
"""Mail to a worker that is gone is kept this long."""

_COMMON = f"""
local p, me = KEYS[1], ARGV[1]
local function key(kind, name) return p .. ':' .. kind .. ':' .. name end
local function text(number) return string.format('%.0f', number) end
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function tell(worker, ...)
  redis.call('XADD', key('inbox', worker), 'MAXLEN', '~', 10000, '*', ...)
  redis.call('EXPIRE', key('inbox', worker), {INBOX_SECONDS})
end
local function keep(run, milliseconds)
  for _, kind in ipairs({{'run', 'log', 'place'}}) do
    redis.call('PEXPIRE', key(kind, run), milliseconds)
  end
end
local function unshare(run, shared)
  if shared and shared ~= '' and redis.call('GET', key('shared', shared)) == run then
    redis.call('DEL', key('shared', shared))
  end
end
local function state(run)
  local r = redis.call('HMGET', key('run', run), 'info', 'status', 'producer', 'after', 'last',
    'first', 'window', 'retain', 'drops_oldest')
  r[#r + 1] = redis.call('HGETALL', key('place', run))
  return r
end
local ORPHAN = {ORPHAN_SECONDS * 1000}
"""


class Script:
    """A script's text, and the name by which Redis knows it once it has seen it."""

    def __init__(self, text: str) -> None:
        self.text = _COMMON + text
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


CREATE = Script("""
local run, info, after, window, retain, drops, shared, ttl = unpack(ARGV, 2)
if shared ~= '' then
  local other = redis.call('GET', key('shared', shared))
  if other and redis.call('HGET', key('run', other), 'status') == 'running' then
    return {'other', other}
  end
end
if redis.call('EXISTS', key('run', run)) == 1 then return {'exists'} end
redis.call('HSET', key('run', run), 'info', info, 'status', 'running', 'producer', me,
  'after', after, 'last', after, 'first', text(after + 1), 'window', window, 'retain', retain,
  'drops_oldest', drops, 'shared', shared)
redis.call('SADD', key('runs', me), run)
redis.call('ZADD', p .. ':workers', 'NX', now() + ttl, me)
if shared ~= '' then redis.call('SET', key('shared', shared), run, 'PX', ORPHAN) end
keep(run, ORPHAN)
return {'created'}
""")
"""me, run, info, after, window, retain in ms, 0 or 1, shared key or '', lease in ms"""

APPEND = Script("""
local run, number, trim, status = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local r = redis.call('HMGET', key('run', run), 'producer', 'status', 'last', 'first', 'retain',
  'shared')
if not r[1] then return {'gone'} end
if r[1] ~= me or r[2] ~= 'running' then return {'refused'} end
local last, first = tonumber(r[3]), tonumber(r[4])
if number > last + 1 then return {'behind', text(last)} end
for i = 6, #ARGV do
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
if trim >= first then
  for _, place in ipairs(redis.call('HVALS', key('place', run))) do
    trim = math.min(trim, tonumber(string.match(place, '^%S+')))
  end
  if trim >= first then
    redis.call('XTRIM', key('log', run), 'MINID', text(trim + 2) .. '-0')
    first = trim + 1
  end
end
redis.call('HSET', key('run', run), 'last', text(last), 'first', text(first))
if redis.call('PTTL', key('log', run)) < 0 then keep(run, ORPHAN) end
if status ~= '' then
  redis.call('HSET', key('run', run), 'status', status)
  redis.call('SREM', key('runs', me), run)
  unshare(run, r[6])
  keep(run, r[5])
end
return {'written', text(last), text(first)}
""")
"""me, run, number of the first frame, last event to trim, status or '', frames...

What is there already is skipped, so that it can be sent again after a lost answer."""

CLOSE = Script("""
local run, status, head, tail = unpack(ARGV, 2)
local r = redis.call('HMGET', key('run', run), 'producer', 'status', 'last', 'retain', 'shared')
if r[2] ~= 'running' then return 0 end
local last = tonumber(r[3]) + 1
redis.call('XADD', key('log', run), text(last + 1) .. '-0', 'f', head .. text(last) .. tail,
  's', status)
redis.call('HSET', key('run', run), 'last', text(last), 'status', status)
redis.call('SREM', key('runs', r[1]), run)
unshare(run, r[5])
keep(run, r[4])
tell(r[1], 'what', 'closed', 'run', run)
return 1
""")
"""me, run, status, the end event's frame before and behind its number"""

LOOK = Script("return state(ARGV[2])")
"""me, run"""

OLDER = Script("""
return redis.call('XRANGE', key('log', ARGV[2]), text(ARGV[3] + 2) .. '-0', '+', 'COUNT', ARGV[4])
""")
"""me, run, behind which event, how many"""

PLACE = Script("""
local run, worker, at, count, wake = unpack(ARGV, 2)
if wake == '1' then tell(me, 'what', 'wake') end
local r = redis.call('HMGET', key('run', run), 'producer', 'status')
if not r[1] then return 'gone' end
if r[2] ~= 'running' then return r[2] end
if at == '' then
  redis.call('HDEL', key('place', run), worker)
else
  redis.call('HSET', key('place', run), worker, at .. ' ' .. count)
  redis.call('PEXPIRE', key('place', run), ORPHAN)
end
if r[1] ~= me then
  tell(r[1], 'what', 'place', 'run', run, 'worker', worker, 'at', at, 'count', count)
end
return r[2]
""")
"""me, run, worker, what its slowest reader has had or '', how many readers, 1: wake me"""

TICK = Script("""
local at, ttl = now(), tonumber(ARGV[2])
local known = redis.call('ZSCORE', p .. ':workers', me)
redis.call('ZADD', p .. ':workers', at + ttl, me)
return {known and 1 or 0, redis.call('ZRANGEBYSCORE', p .. ':workers', '-inf', at),
  redis.call('ZRANGEBYSCORE', p .. ':workers', 0, 0), redis.call('ZRANGE', p .. ':workers', 0, -1)}
""")
"""me, lease in ms -> had I a lease, whose are over, who has left, all"""

RUNS = Script("return redis.call('SMEMBERS', key('runs', ARGV[2]))")
"""me, worker"""

TAKE = Script("""
local run, from = ARGV[2], ARGV[3]
local lease = redis.call('ZSCORE', p .. ':workers', from)
if lease and tonumber(lease) > now() then return false end
local r = redis.call('HMGET', key('run', run), 'producer', 'status')
if r[1] == me and r[2] == 'running' then return state(run) end
if r[1] ~= from or r[2] ~= 'running' then
  if r[1] ~= from or not r[2] then redis.call('SREM', key('runs', from), run) end
  return false
end
redis.call('HSET', key('run', run), 'producer', me)
redis.call('SREM', key('runs', from), run)
redis.call('SADD', key('runs', me), run)
redis.call('HDEL', key('place', run), me, from)
tell(from, 'what', 'taken', 'run', run)
return state(run)
""")
"""me, run, from whom -> the run's state, if it is taken"""

BURY = Script("""
local worker = ARGV[2]
local lease = redis.call('ZSCORE', p .. ':workers', worker)
if lease and tonumber(lease) <= now() and redis.call('SCARD', key('runs', worker)) == 0 then
  redis.call('ZREM', p .. ':workers', worker)
  redis.call('DEL', key('inbox', worker))
end
return 0
""")
"""me, worker"""

LEAVE = Script("""
redis.call('DEL', key('inbox', me))
if redis.call('SCARD', key('runs', me)) == 0 then
  redis.call('ZREM', p .. ':workers', me)
  return 0
end
redis.call('ZADD', p .. ':workers', 0, me)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', p .. ':workers', now(), '+inf')) do
  tell(worker, 'what', 'left', 'worker', me)
end
return 0
""")
"""me"""

DISCARD = Script("""
local run = ARGV[2]
local r = redis.call('HMGET', key('run', run), 'producer', 'shared')
if not r[1] then return 0 end
for _, worker in ipairs(redis.call('HKEYS', key('place', run))) do
  tell(worker, 'what', 'gone', 'run', run)
end
if r[1] ~= me then tell(r[1], 'what', 'gone', 'run', run) end
redis.call('SREM', key('runs', r[1]), run)
unshare(run, r[2])
redis.call('DEL', key('run', run), key('log', run), key('place', run))
return 1
""")
"""me, run"""

STAY = Script("""
if redis.call('HGET', key('run', ARGV[2]), 'producer') == me then keep(ARGV[2], ORPHAN) end
return 0
""")
"""me, run: an unfinished run does not expire while it has a worker"""

SCRIPTS = [s for s in list(globals().values()) if isinstance(s, Script)]
