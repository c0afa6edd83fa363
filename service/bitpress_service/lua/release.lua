-- ARGV: id, fence, ms before it may be claimed again, failure or ''
-- Returns the job, or 'fenced'. The call may come twice when its reply was lost.
local id, fence, delay_ms, failure = unpack(ARGV)

local held, asked = holds(id, fence)
if not held then
  local given_back = read(id, 'fence', 'state')
  local waits = given_back[2] == 'queued' or given_back[2] == 'paused'
  return given_back[1] == fence and waits and job(id) or fenced()
end
-- An attempt that ends in good order is no lost one.
if read(id, 'stalled')[1] ~= '0' then redis.call('HINCRBY', job_key(id), 'stalled', -1) end
if failure ~= '' then redis.call('HINCRBY', job_key(id), 'failures', 1) end
settle(id, asked, tonumber(delay_ms), failure)
return job(id)
