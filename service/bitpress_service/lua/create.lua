-- ARGV: id, tenant, priority, spec, idempotency key's hash or '', fingerprint, ms an idempotency key lives,
--       traceparent or ''
-- Returns {id of the job} or 'conflict'. The call may come twice when its reply was lost.
local id, tenant, priority, spec, idempotency, fingerprint, keep_ms, trace = unpack(ARGV)

if redis.call('EXISTS', job_key(id)) == 1 then return id end
if idempotency ~= '' then
  local key = prefix .. 'idempotency:' .. tenant .. ':' .. idempotency
  local used = redis.call('GET', key)
  if used then
    local first_id, first_fingerprint = used:match('^(%S+) (%S+)$')
    return first_fingerprint == fingerprint and first_id or 'conflict'
  end
  redis.call('SET', key, id .. ' ' .. fingerprint, 'PX', keep_ms)
end

local sequence = redis.call('INCR', prefix .. 'sequence')
redis.call('HSET', job_key(id), 'id', id, 'tenant', tenant, 'priority', priority, 'spec', spec,
  'attempt', 0, 'failures', 0, 'stalled', 0, 'fence', 0, 'version', 0, 'created_at', integer(now_ms()),
  'rank', integer(-priority * 1e12 + sequence), 'traceparent', trace)
redis.call('ZADD', prefix .. 'jobs:' .. tenant, 0, id)
enqueue(id, 0, '')
return id
