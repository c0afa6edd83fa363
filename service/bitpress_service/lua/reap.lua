-- ARGV: attempts without a new block after which a job fails
-- Returns the ids of the jobs whose lease had run out.
local max_stalled = tonumber(ARGV[1])

local expired = redis.call('ZRANGEBYSCORE', leases, '-inf', integer(now_ms()), 'LIMIT', 0, 100)
for _, id in ipairs(expired) do
  -- From here on the old worker's writes are refused, whoever takes over and when.
  raise_fence(id, 0)
  count('takeovers')
  local current = read(id, 'asked', 'stalled', 'attempt', 'owner')
  local failure = {code = 'worker-lost', retryable = true, attempt = tonumber(current[3]),
    message = 'worker ' .. current[4] .. ' was not heard of for the length of its lease'}
  if not current[1] and tonumber(current[2]) >= max_stalled then
    failure.message = failure.message .. '; ' .. current[2] .. ' attempts in a row were lost without a new block'
    finish_as(id, 'failed', cjson.encode(failure))
  else
    settle(id, current[1], 0, cjson.encode(failure))
  end
end
return expired
