-- ARGV: owner, report (JSON), ms after which it is forgotten
local owner, report, keep_ms = unpack(ARGV)

local key = prefix .. 'dispatcher:' .. owner
redis.call('HSET', key, 'report', report, 'at', integer(now_ms()))
redis.call('PEXPIRE', key, keep_ms)
redis.call('SADD', prefix .. 'dispatchers', owner)
