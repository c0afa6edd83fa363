-- ARGV: id, which try, HTTP status or '', error or '', ms until the next try or ''
-- Of a try that was claimed again meanwhile, nothing is written. The call may come twice when its reply was lost.
local id, try, status, failure, retry_ms = unpack(ARGV)

local current = redis.call('HMGET', delivery_key(id), 'tries', 'state')
if current[1] ~= try or current[2] ~= 'pending' then return end
if failure == '' then
  end_delivery(id, 'delivered', status, '')
elseif retry_ms == '' then
  end_delivery(id, 'failed', status, failure)
else
  local at = integer(now_ms() + tonumber(retry_ms))
  redis.call('ZADD', due, at, id)
  redis.call('HSET', delivery_key(id), 'status', status, 'error', failure, 'due', at)
end
