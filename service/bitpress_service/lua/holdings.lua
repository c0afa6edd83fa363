-- Returns {{id, tenant, owner, cluster or '', devices}, ...} of the jobs that run.
return holdings()
