-- Returns {{id, tenant, owner, cluster or '', devices}, ...} of the jobs that run. Those that were claimed together, as
-- one `group`, share their devices, which stand beside the first of them.
local found, groups = {}, {}
for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  local on = read(id, 'tenant', 'owner', 'cluster', 'holds', 'group')
  local group = on[5] or id
  table.insert(found, {id, on[1], on[2], on[3], groups[group] and '0' or on[4]})
  groups[group] = true
end
return found
