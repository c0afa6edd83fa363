-- ARGV: ms until they are due again, how many at most
-- Returns {delivery, its webhook} for each that is due now.
local lease_ms, limit = unpack(ARGV)

local now = now_ms()
local claimed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', integer(now), 'LIMIT', 0, limit)) do
  local hook = redis.call('HMGET', delivery_key(id), 'webhook', 'type')
  local webhook = hook[1] and redis.call('HGETALL', webhook_key(hook[1])) or {}
  local disabled = hook[1] and redis.call('HGET', webhook_key(hook[1]), 'disabled')
  if #webhook == 0 then
    redis.call('ZREM', due, id)
    redis.call('DEL', delivery_key(id))
  elseif disabled then
    end_delivery(id, 'failed', '', 'the webhook is disabled: ' .. disabled)
  else
    redis.call('ZADD', due, integer(now + lease_ms), id)
    redis.call('HINCRBY', delivery_key(id), 'tries', 1)
    redis.call('HSET', delivery_key(id), 'due', integer(now + lease_ms))
    table.insert(claimed, {redis.call('HGETALL', delivery_key(id)), webhook})
  end
end
return claimed
