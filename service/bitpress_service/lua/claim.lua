-- ARGV: owner, ms of the lease
-- Returns the job, or false when none is due.
local owner, lease_ms = unpack(ARGV)

local now = now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', integer(now), 'LIMIT', 0, 100)) do
  redis.call('ZREM', delayed, id)
  redis.call('ZADD', queue, read(id, 'rank')[1], id)
end

local id = redis.call('ZPOPMIN', queue)[1]
if not id then return false end
local key = job_key(id)
redis.call('HINCRBY', key, 'fence', 1)
redis.call('HINCRBY', key, 'attempt', 1)
redis.call('HINCRBY', key, 'stalled', 1)
redis.call('HSETNX', key, 'started_at', integer(now))
redis.call('HSET', key, 'owner', owner, 'block_since', integer(now))
count('attempts')
redis.call('ZADD', leases, integer(now + lease_ms), id)
become(id, 'running', '')
return job(id)
