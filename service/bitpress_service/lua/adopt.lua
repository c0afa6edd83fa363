-- ARGV: id, tenant, state, failure or '', spec, files, ms of creation, ms of its end, attempts, fence,
--       method, model, name in lower case, labels, devices or '', then index and record of each block
-- Makes a job that ended out of what the artifact store knows of it. Returns 1, or 0 when there is one with that id.
local id, tenant, state, failure, spec, files, created_at, finished_at, attempt, fence,
  method, model, find, labels, devices = unpack(ARGV, 1, 15)

if redis.call('EXISTS', job_key(id)) == 1 then return 0 end
local sequence = redis.call('INCR', prefix .. 'sequence')
redis.call('HSET', job_key(id), 'id', id, 'tenant', tenant, 'state', state, 'error', failure, 'status_detail', '',
  'spec', spec, 'files', files, 'priority', 0, 'attempt', attempt, 'failures', 0, 'stalled', 0, 'fence', fence,
  'version', 1, 'created_at', created_at, 'finished_at', finished_at, 'at:' .. state, finished_at,
  'sequence', sequence, 'rank', rank_of(0, sequence), 'method', method, 'model', model, 'find', find,
  'labels', labels, 'devices', devices, 'traceparent', '')
for n = 16, #ARGV, 2 do redis.call('HSET', prefix .. 'blocks:' .. id, ARGV[n], ARGV[n + 1]) end
redis.call('ZADD', prefix .. 'jobs:' .. tenant, 0, id)
redis.call('ZADD', prefix .. 'jobs:' .. tenant .. ':' .. state, 0, id)
emit(id, 'log', '{"message":"found in the artifact store and taken in again"}')
local shown = failure == '' and 'null' or failure
emit(id, 'state', '{"state":"' .. state .. '","attempt":' .. attempt .. ',"error":' .. shown .. '}')
return 1
