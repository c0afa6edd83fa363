-- ARGV: attempts without a new block after which a job fails
-- Returns the ids of the jobs whose lease had run out, and of those that were claimed with them.
local max_stalled = tonumber(ARGV[1])
local reaped = {}

local function reap(id)
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
  table.insert(reaped, id)
end

local function is_held(id) return redis.call('ZSCORE', leases, id) end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', integer(now_ms()), 'LIMIT', 0, 100)) do
  local facts = read(id, 'sweep', 'group')
  if is_held(id) then reap(id) end
  -- One worker has them all: together they go on to the next one.
  for _, member in ipairs(redis.call('ZRANGE', sweep_key(facts[1] or ''), 0, -1)) do
    if is_held(member) and read(member, 'group')[1] == facts[2] then reap(member) end
  end
end
return reaped
