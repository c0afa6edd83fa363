-- ARGV: id, tenant, '1' to forget the published blocks, how many of the tenant's jobs may wait or ''
-- Returns the job, 'missing', 'conflict', or 'full'. The call may come twice when its reply was lost.
local id, tenant, fresh, most = unpack(ARGV)

local state = state_of(id, tenant)
if not state then return 'missing' end
if state == 'queued' then return job(id) end
if state ~= 'failed' and state ~= 'cancelled' then return 'conflict' end
if is_full(tenant, most, 1) then return 'full' end
if fresh == '1' then redis.call('DEL', prefix .. 'blocks:' .. id) end
redis.call('HDEL', job_key(id), 'progress', 'finished_at')
redis.call('HSET', job_key(id), 'failures', 0, 'stalled', 0)
enqueue(id, 0, '')
return job(id)
