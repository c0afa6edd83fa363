-- ARGV: SHA-256 of a key, requests a second (0: no limit), how many at once
-- Returns {id, tenant, scopes, requests that are left at once, ms until there is another one}, the last 0 when this
-- request may go on; false when no such key is valid. The call may come twice: one request is then charged twice.
local digest, per_second, burst = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local MINUTE_MS = 60000

local key = key_key(digest)
local record = redis.call('HMGET', key, 'id', 'tenant', 'scopes', 'created_at', 'expires_at', 'last_used_at')
if not is_valid(record[4], record[5]) then return false end
local id, now = record[1], now_ms()
if not record[6] or now - tonumber(record[6]) >= MINUTE_MS then
  redis.call('HSET', key, 'last_used_at', integer(now))
end
if per_second == 0 then return {id, record[2], record[3], 0, 0} end

local bucket = redis.call('HMGET', prefix .. 'rate:' .. id, 'tokens', 'at')
local tokens = burst
if bucket[1] then tokens = math.min(burst, bucket[1] + (now - bucket[2]) / 1000 * per_second) end
local wait_ms = 0
if tokens >= 1 then
  tokens = tokens - 1
else
  wait_ms = math.ceil((1 - tokens) / per_second * 1000)
end
redis.call('HSET', prefix .. 'rate:' .. id, 'tokens', tostring(tokens), 'at', integer(now))
redis.call('PEXPIRE', prefix .. 'rate:' .. id, math.ceil(burst / per_second * 1000) + MINUTE_MS)
return {id, record[2], record[3], math.floor(tokens), wait_ms}
