-- ARGV: id, tenant, expected version or '', spec as it was read, spec, name in lower case, labels, priority or ''
-- Returns the job, 'missing', 'stale' (another version), 'changed' (another spec than the one that was read),
-- or 'busy' (no priority to speak of).
local id, tenant, version, was, spec, find, labels, priority = unpack(ARGV)

local state = state_of(id, tenant)
if not state then return 'missing' end
local current = read(id, 'spec', 'priority', 'version', 'sequence')
if priority == '' then priority = current[2] end
-- Also when the call comes twice because its reply was lost.
if current[1] == spec and current[2] == priority then return job(id) end
if version ~= '' and version ~= current[3] then return 'stale' end
if current[1] ~= was then return 'changed' end
if priority ~= current[2] and state ~= 'queued' and state ~= 'paused' then return 'busy' end
local rank = rank_of(priority, current[4])
redis.call('HSET', job_key(id), 'spec', spec, 'find', find, 'labels', labels, 'priority', priority, 'rank', rank)
redis.call('ZADD', queue, 'XX', rank, id)
redis.call('HINCRBY', job_key(id), 'version', 1)
return job(id)
