-- ARGV: SHA-256
-- Returns the key's record, or false when there is none that is valid.
local key = key_key(ARGV[1])
if not is_valid(redis.call('HGET', key, 'created_at'), redis.call('HGET', key, 'expires_at')) then return false end
return redis.call('HGETALL', key)
