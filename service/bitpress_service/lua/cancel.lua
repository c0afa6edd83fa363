-- ARGV: id, tenant or ''
-- Returns the job, or 'missing'.
local id, tenant = unpack(ARGV)

local current = read(id, 'tenant', 'state')
if not current[1] or (tenant ~= '' and current[1] ~= tenant) then return 'missing' end
if current[2] == 'queued' then
  redis.call('ZREM', queue, id)
  redis.call('ZREM', delayed, id)
  redis.call('HSET', job_key(id), 'cancel', 1)
  finish_as(id, 'cancelled', '')
elseif current[2] == 'running' then
  redis.call('HSET', job_key(id), 'cancel', 1)
  become(id, 'cancelling', '')
end
return job(id)
