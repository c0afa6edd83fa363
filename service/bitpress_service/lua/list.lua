-- ARGV: tenant, state or '', id to start behind or '', how many at most, method or '', model or '',
--       part of the name in lower case or '', ms that it was created after or '', what its id begins with or '',
--       sweep or '', labels, each as it stands in `labels`
-- Returns {id of the last job looked at, or '' when there is none behind it; the jobs, newest first}. A page may hold
-- fewer than asked for, though others follow: one call looks at no more than so many.
local tenant, state, behind, limit, method, model, find, created_after, begin, sweep = unpack(ARGV)
limit, created_after = tonumber(limit), tonumber(created_after)
local LOOK_AT, BATCH = 2000, 100

local function fits(id)
  local facts = read(id, 'method', 'model', 'find', 'created_at', 'labels', 'tenant', 'state')
  if method ~= '' and facts[1] ~= method or model ~= '' and facts[2] ~= model then return false end
  if find ~= '' and not facts[3]:find(find, 1, true) then return false end
  if created_after and tonumber(facts[4]) <= created_after then return false end
  if sweep ~= '' and (facts[6] ~= tenant or state ~= '' and facts[7] ~= state) then return false end
  for n = 11, #ARGV do
    if not facts[5]:find(ARGV[n], 1, true) then return false end
  end
  return true
end

local index = prefix .. 'jobs:' .. tenant
if state ~= '' then index = index .. ':' .. state end
if sweep ~= '' then index = sweep_key(sweep) end
local filtered = method ~= '' or model ~= '' or find ~= '' or created_after or sweep ~= '' or #ARGV > 10
local highest, lowest = begin == '' and '+' or '(' .. begin .. '~', begin == '' and '-' or '[' .. begin
local jobs, looked_at = {}, 0
while looked_at < LOOK_AT do
  local from = behind == '' and highest or '(' .. behind
  local ids = redis.call('ZREVRANGEBYLEX', index, from, lowest, 'LIMIT', 0, filtered and BATCH or limit + 1)
  for _, id in ipairs(ids) do
    if #jobs == limit then return {behind, jobs} end
    if not filtered or fits(id) then table.insert(jobs, job(id)) end
    behind, looked_at = id, looked_at + 1
  end
  if #ids < (filtered and BATCH or limit + 1) then return {'', jobs} end
end
return {behind, jobs}
