-- ARGV: tenant, priority, idempotency key's hash or '', fingerprint, ms an idempotency key lives, how many of the
--       tenant's jobs may wait or '', traceparent or '', sweep that the jobs are members of or '', model, name in lower
--       case, labels, devices or ''; then for each job: id, spec, method
-- Returns the ids of the jobs, 'conflict', or 'full'. The call may come twice when its reply was lost.
local tenant, priority, idempotency, fingerprint, keep_ms, most, trace, sweep, model, find, labels, devices
  = unpack(ARGV)
local SHARED, EACH = 12, 3
local number = (#ARGV - SHARED) / EACH

-- What a call has made that left this name behind; nothing once all of it is deleted.
local function made(name)
  if redis.call('EXISTS', job_key(name)) == 1 then return {name} end
  return redis.call('ZRANGE', sweep_key(name), 0, -1)
end

local name = sweep == '' and ARGV[SHARED + 1] or sweep
local before = made(name)
if #before > 0 then return before end
local key = prefix .. 'idempotency:' .. tenant .. ':' .. idempotency
local used = idempotency ~= '' and redis.call('GET', key)
if used then
  local first_name, first_fingerprint = used:match('^(%S+) (%S+)$')
  before = made(first_name)
  if #before > 0 then return first_fingerprint == fingerprint and before or 'conflict' end
end
if is_full(tenant, most, number) then return 'full' end
if idempotency ~= '' then redis.call('SET', key, name .. ' ' .. fingerprint, 'PX', keep_ms) end

for place = SHARED + 1, #ARGV, EACH do
  local id, spec, method = ARGV[place], ARGV[place + 1], ARGV[place + 2]
  local sequence = redis.call('INCR', prefix .. 'sequence')
  redis.call('HSET', job_key(id), 'id', id, 'tenant', tenant, 'priority', priority, 'spec', spec,
    'attempt', 0, 'failures', 0, 'stalled', 0, 'fence', 0, 'version', 0, 'created_at', integer(now_ms()),
    'sequence', sequence, 'rank', rank_of(priority, sequence), 'method', method, 'model', model, 'find', find,
    'labels', labels, 'devices', devices, 'traceparent', trace, 'sweep', sweep)
  redis.call('ZADD', prefix .. 'jobs:' .. tenant, 0, id)
  if sweep ~= '' then redis.call('ZADD', sweep_key(sweep), 0, id) end
  enqueue(id, 0, '')
end
return made(name)
