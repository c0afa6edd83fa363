-- ARGV: id, fence, ms of the lease
-- Returns 'ok', 'pause', 'cancel' or 'fenced'.
local id, fence, lease_ms = unpack(ARGV)

local held, asked = holds(id, fence)
if not held then return fenced() end
redis.call('ZADD', leases, integer(now_ms() + lease_ms), id)
return asked
