-- Returns {{id, tenant, owner, cluster or '', devices}, ...} of the jobs that run.
local found = {}
for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  table.insert(found, {id, unpack(read(id, 'tenant', 'owner', 'cluster', 'holds'))})
end
return found
