-- ARGV: tenant, state or '', id to start behind or '', how many at most
-- Returns the jobs, newest first.
local tenant, state, behind, limit = unpack(ARGV)

local index = prefix .. 'jobs:' .. tenant
if state ~= '' then index = index .. ':' .. state end
local from = behind == '' and '+' or '(' .. behind
local jobs = {}
for _, id in ipairs(redis.call('ZREVRANGEBYLEX', index, from, '-', 'LIMIT', 0, limit)) do
  table.insert(jobs, job(id))
end
return jobs
