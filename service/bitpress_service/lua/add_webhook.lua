-- ARGV: id, tenant, URL, event types with spaces between, secret, how many a tenant may have
-- Returns 'ok' or 'full'. The call may come twice when its reply was lost.
local id, tenant, url, events, secret, max = unpack(ARGV)

local index = prefix .. 'webhooks:' .. tenant
if redis.call('EXISTS', webhook_key(id)) == 1 then return 'ok' end
if redis.call('SCARD', index) >= tonumber(max) then return 'full' end
redis.call('HSET', webhook_key(id), 'id', id, 'tenant', tenant, 'url', url, 'events', events, 'secret', secret,
  'created_at', integer(now_ms()))
redis.call('SADD', index, id)
return 'ok'
