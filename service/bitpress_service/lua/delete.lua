-- ARGV: id, tenant, prefix of its objects
-- Returns 'deleted', 'missing', or 'conflict'. The call may come twice when its reply was lost.
local id, tenant, objects = unpack(ARGV)

local state = state_of(id, tenant)
if not state then
  return redis.call('SISMEMBER', prefix .. 'trash', objects) == 1 and 'deleted' or 'missing'
end
if state ~= 'succeeded' and state ~= 'failed' and state ~= 'cancelled' then return 'conflict' end
redis.call('SADD', prefix .. 'trash', objects)
local index = prefix .. 'jobs:' .. read(id, 'tenant')[1]
redis.call('ZREM', sweep_key(read(id, 'sweep')[1] or ''), id)
redis.call('ZREM', index, id)
redis.call('ZREM', index .. ':' .. state, id)
redis.call('DEL', job_key(id), prefix .. 'events:' .. id, prefix .. 'blocks:' .. id)
return 'deleted'
