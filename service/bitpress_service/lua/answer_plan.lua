-- ARGV: id, answer (JSON), ms that it is there for those who wait
-- A plan that was forgotten has nobody who waits.
local id, answer, keep_ms = unpack(ARGV)

if redis.call('EXISTS', plan_key(id)) == 0 then return end
redis.call('HSET', plan_key(id), 'answer', answer)
redis.call('PEXPIRE', plan_key(id), keep_ms)
