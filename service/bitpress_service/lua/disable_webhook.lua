-- ARGV: id, reason
local id, reason = unpack(ARGV)

if redis.call('EXISTS', webhook_key(id)) == 1 then redis.call('HSETNX', webhook_key(id), 'disabled', reason) end
