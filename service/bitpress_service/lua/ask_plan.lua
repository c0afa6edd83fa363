-- ARGV: id, request (JSON), ms until it is forgotten
-- The same request has the same id: it joins the plan that is being made.
local id, request, keep_ms = unpack(ARGV)

if redis.call('EXISTS', plan_key(id)) == 1 then return end
redis.call('HSET', plan_key(id), 'request', request)
redis.call('PEXPIRE', plan_key(id), keep_ms)
redis.call('RPUSH', prefix .. 'plans', id)
