-- ARGV: id, fence, state, failure or '', files
-- Returns the job, 'fenced', or 'unasked'. The call may come twice when its reply was lost.
local id, fence, state, failure, files = unpack(ARGV)

local held, asked = holds(id, fence)
if not held then
  local ended = read(id, 'fence', 'finished_at')
  return ended[1] == fence and ended[2] and job(id) or fenced()
end
if asked == 'cancel' then
  finish_as(id, 'cancelled', '')
elseif state == 'cancelled' then
  return 'unasked'
elseif state == 'failed' then
  redis.call('HINCRBY', job_key(id), 'failures', 1)
  if files ~= '{}' then -- a complete artifact that is not what was asked for
    redis.call('HSET', job_key(id), 'files', files)
  end
  finish_as(id, 'failed', failure)
else
  redis.call('HSET', job_key(id), 'files', files)
  finish_as(id, 'succeeded', '')
end
return job(id)
