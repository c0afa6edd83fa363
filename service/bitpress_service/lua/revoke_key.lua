-- ARGV: id
-- Returns 'revoked' or 'missing'.
local id = ARGV[1]

local digest = redis.call('HGET', prefix .. 'key-ids', id)
if not digest then return 'missing' end
redis.call('HDEL', prefix .. 'key-ids', id)
redis.call('DEL', key_key(digest), prefix .. 'rate:' .. id)
return 'revoked'
