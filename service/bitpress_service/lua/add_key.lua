-- ARGV: SHA-256, id, tenant, scopes, name, ms when it expires or ''
-- Returns the key's record. A key that is there already keeps when it was made and used.
local digest, id, tenant, scopes, name, expires_at = unpack(ARGV)

local key = key_key(digest)
redis.call('HSET', key, 'id', id, 'tenant', tenant, 'scopes', scopes, 'name', name, 'expires_at', expires_at)
redis.call('HSETNX', key, 'created_at', integer(now_ms()))
redis.call('HSET', prefix .. 'key-ids', id, digest)
return redis.call('HGETALL', key)
