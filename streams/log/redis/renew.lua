-- Renews the caller's lease.
--
-- ARGV: worker, lease in ms
-- Returns four items: 1 if the caller had a lease, else 0; the workers whose lease has expired or
-- that have left; the workers that have left; all workers.

local time, lease = now(), tonumber(ARGV[2])
local had_lease = redis.call('ZSCORE', WORKERS, me)
redis.call('ZADD', WORKERS, time + lease, me)
return {had_lease and 1 or 0, redis.call('ZRANGEBYSCORE', WORKERS, '-inf', time),
  redis.call('ZRANGEBYSCORE', WORKERS, 0, 0), redis.call('ZRANGE', WORKERS, 0, -1)}
