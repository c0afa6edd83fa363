-- Returns {id, request (JSON)} of the oldest plan that is still asked for, or false.
while true do
  local id = redis.call('LPOP', prefix .. 'plans')
  if not id then return false end
  local request = redis.call('HGET', plan_key(id), 'request')
  if request then return {id, request} end
end
