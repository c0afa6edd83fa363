-- ARGV: id, tenant or ''
-- Returns the job, or 'missing'.
local id, tenant = unpack(ARGV)

local state = state_of(id, tenant)
if not state then return 'missing' end
if state == 'queued' or state == 'paused' then
  dequeue(id)
  redis.call('HSET', job_key(id), 'asked', 'cancel')
  finish_as(id, 'cancelled', '')
elseif state == 'running' or state == 'pausing' then
  redis.call('HSET', job_key(id), 'asked', 'cancel')
  become(id, 'cancelling', '')
end
return job(id)
