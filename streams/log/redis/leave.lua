-- Marks the caller as left, and notifies the other workers if it has unfinished runs.
--
-- ARGV: worker
-- Returns 0.

redis.call('DEL', key('inbox', me))
if redis.call('SCARD', key('runs', me)) == 0 then
  redis.call('ZREM', WORKERS, me)
  return 0
end
redis.call('ZADD', WORKERS, 0, me)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, now(), '+inf')) do
  notify(worker, 'kind', 'left', 'worker', me)
end
return 0
