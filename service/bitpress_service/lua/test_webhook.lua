-- ARGV: id of the webhook, what makes the delivery's id unique
-- Returns the delivery.
local id, unique = unpack(ARGV)

local delivery = id .. '-' .. unique
add_delivery(delivery, id, 'webhook.test', '')
return redis.call('HGETALL', delivery_key(delivery))
