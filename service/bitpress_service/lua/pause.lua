-- ARGV: id, tenant
-- Returns the job, 'missing', or 'conflict'.
local id, tenant = unpack(ARGV)

local state = state_of(id, tenant)
if not state then return 'missing' end
if state == 'queued' then
  dequeue(id)
  pause(id, '')
elseif state == 'running' then
  redis.call('HSET', job_key(id), 'asked', 'pause')
  become(id, 'pausing', '')
elseif state ~= 'pausing' and state ~= 'paused' then
  return 'conflict'
end
return job(id)
