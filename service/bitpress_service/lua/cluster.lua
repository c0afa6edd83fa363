-- Returns {{report (JSON), ms}, ...}, {{priority, jobs}, ...} with the highest first, delayed jobs, running jobs.
local HIGHEST, PLACES = 100, 1e12  -- of priorities; of jobs with the same priority

local owners = redis.call('SMEMBERS', prefix .. 'dispatchers')
table.sort(owners)
local reports = {}
for _, owner in ipairs(owners) do
  local report = redis.call('HMGET', prefix .. 'dispatcher:' .. owner, 'report', 'at')
  if report[1] then
    table.insert(reports, report)
  else
    redis.call('SREM', prefix .. 'dispatchers', owner)
  end
end

local levels = {}
for priority = HIGHEST, -HIGHEST, -1 do
  local first = -priority * PLACES
  local jobs = redis.call('ZCOUNT', queue, integer(first), '(' .. integer(first + PLACES))
  if jobs > 0 then table.insert(levels, {priority, jobs}) end
end
return {reports, levels, redis.call('ZCARD', delayed), redis.call('ZCARD', leases)}
