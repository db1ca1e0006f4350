-- Removes a worker that has left or lost its lease, once it produces no run any more.
--
-- ARGV: worker, the worker to remove
-- Returns 0.

local worker = ARGV[2]
local lease = redis.call('ZSCORE', WORKERS, worker)
if lease and tonumber(lease) <= now() and redis.call('SCARD', key('runs', worker)) == 0 then
  redis.call('ZREM', WORKERS, worker)
  redis.call('DEL', key('inbox', worker))
end
return 0
