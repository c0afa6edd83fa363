-- Returns {{priority, jobs in the queue, ms that its oldest waits}, ...}, delayed jobs, held leases, leases that ran
-- out, deliveries of webhooks that are still to come, and the counters.
local now = now_ms()
local waiting = {}
local first = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
while first[1] do
  -- A rank is -priority * 1e12 + sequence: the jobs of one priority lie within a range.
  local priority = -math.floor(tonumber(first[2]) / 1e12)
  local last = integer((1 - priority) * 1e12)
  local since = tonumber(read(first[1], 'created_at')[1])
  table.insert(waiting, {priority, redis.call('ZCOUNT', queue, first[2], '(' .. last), now - since})
  first = redis.call('ZRANGEBYSCORE', queue, last, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
end
local expired = redis.call('ZCOUNT', leases, '-inf', integer(now))
return {waiting, redis.call('ZCARD', delayed), redis.call('ZCARD', leases) - expired, expired,
  redis.call('ZCARD', due), redis.call('HGETALL', prefix .. 'counters')}
