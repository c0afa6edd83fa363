-- ARGV: id, tenant, priority, spec, idempotency key's hash or '', fingerprint, ms an idempotency key lives,
--       method, model, name in lower case, labels, devices or '', how many of the tenant's
--       jobs may wait or '', traceparent or ''
-- Returns the id of the job, 'conflict', or 'full'. The call may come twice when its reply was lost.
local id, tenant, priority, spec, idempotency, fingerprint, keep_ms,
  method, model, find, labels, devices, most, trace = unpack(ARGV)

if redis.call('EXISTS', job_key(id)) == 1 then return id end
local key = prefix .. 'idempotency:' .. tenant .. ':' .. idempotency
local used = idempotency ~= '' and redis.call('GET', key)
if used then
  local first_id, first_fingerprint = used:match('^(%S+) (%S+)$')
  if redis.call('EXISTS', job_key(first_id)) == 1 then
    return first_fingerprint == fingerprint and first_id or 'conflict'
  end
end
if is_full(tenant, most) then return 'full' end
if idempotency ~= '' then redis.call('SET', key, id .. ' ' .. fingerprint, 'PX', keep_ms) end

local sequence = redis.call('INCR', prefix .. 'sequence')
redis.call('HSET', job_key(id), 'id', id, 'tenant', tenant, 'priority', priority, 'spec', spec,
  'attempt', 0, 'failures', 0, 'stalled', 0, 'fence', 0, 'version', 0, 'created_at', integer(now_ms()),
  'sequence', sequence, 'rank', rank_of(priority, sequence), 'method', method, 'model', model, 'find', find,
  'labels', labels, 'devices', devices, 'traceparent', trace)
redis.call('ZADD', prefix .. 'jobs:' .. tenant, 0, id)
enqueue(id, 0, '')
return id
