-- ARGV: id, tenant
-- Returns the job, 'missing', or 'conflict'.
local id, tenant = unpack(ARGV)

local state = state_of(id, tenant)
if not state then return 'missing' end
if state == 'paused' then
  enqueue(id, 0, '')
elseif state == 'pausing' then
  -- Its worker may know of the pause already; it is then queued again when that one is done.
  redis.call('HDEL', job_key(id), 'asked')
  become(id, 'running', '')
elseif state ~= 'queued' and state ~= 'running' then
  return 'conflict'
end
return job(id)
