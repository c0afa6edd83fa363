-- ARGV: owner, ms of the lease, nine digits that were drawn for the fence, cluster and its devices (or ''),
--       ms for which a job may be passed over
-- Returns the job, with it the other members of its sweep that wait, or false when none is due.
local owner, lease_ms, drawn, cluster, devices, patience_ms = unpack(ARGV)
local total = tonumber(devices)
local LOOK_AT = 1000  -- of the queue's head; a script must not take long
local ALONE = 2  -- who has lost so many attempts in a row gets the next for itself: another member may be to blame

local now = now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', integer(now), 'LIMIT', 0, 100)) do
  redis.call('ZREM', delayed, id)
  redis.call('ZADD', queue, read(id, 'rank')[1], id)
end

-- What attempts hold of the cluster.
local function held()
  local sum = 0
  for _, holding in ipairs(holdings()) do
    if holding[4] == cluster then sum = sum + tonumber(holding[5]) end
  end
  return sum
end

local function tell(id, why)
  if read(id, 'status_detail')[1] == why then return end
  redis.call('HSET', job_key(id), 'status_detail', why)
  redis.call('HINCRBY', job_key(id), 'version', 1)
end

-- The first job that finds enough devices, and how many it asks for.
local function first_that_fits()
  if not total then return redis.call('ZRANGE', queue, 0, 0)[1], 0 end
  local free = total - held()
  for _, id in ipairs(redis.call('ZRANGE', queue, 0, LOOK_AT - 1)) do
    local wants = tonumber(read(id, 'devices')[1]) or math.max(total, 1)
    if wants <= free then return id, wants end
    local why = 'waiting for ' .. wants .. (wants == 1 and ' device: ' or ' devices: ')
    if wants > total then
      -- The cluster may grow, but nobody has to wait for that.
      tell(id, why .. 'the cluster has ' .. total)
    else
      tell(id, why .. free .. ' of ' .. total .. ' are free')
      redis.call('HSETNX', job_key(id), 'passed_over_at', integer(now))
      if now - tonumber(read(id, 'passed_over_at')[1]) >= tonumber(patience_ms) then return nil end
    end
  end
  return nil
end

local function is_shared(id)
  local lost = read(id, 'failures', 'stalled')
  return math.max(tonumber(lost[1]), tonumber(lost[2])) < ALONE
end

-- The other members of a job's sweep that wait, those after a failure too: what failed was the attempt they shared.
local function members_with(id)
  local sweep, found = read(id, 'sweep')[1] or '', {}
  if sweep == '' or not is_shared(id) then return found end
  for _, member in ipairs(redis.call('ZRANGE', sweep_key(sweep), 0, -1)) do
    if member ~= id and read(member, 'state')[1] == 'queued' and is_shared(member) then table.insert(found, member) end
  end
  return found
end

local function take(id, holds, group)
  dequeue(id)
  local key = job_key(id)
  redis.call('HDEL', key, 'passed_over_at')
  redis.call('HSET', key, 'owner', owner, 'cluster', cluster, 'holds', holds, 'group', group,
    'block_since', integer(now))
  count('attempts')
  raise_fence(id, drawn)
  redis.call('HINCRBY', key, 'attempt', 1)
  redis.call('HINCRBY', key, 'stalled', 1)
  redis.call('HSETNX', key, 'started_at', integer(now))
  redis.call('ZADD', leases, integer(now + lease_ms), id)
  become(id, 'running', '')
  return job(id)
end

local id, holds = first_that_fits()
if not id then return false end
local group = id .. ' ' .. read(id, 'fence')[1]
local others = members_with(id)
local taken = {take(id, holds, group)}
for _, member in ipairs(others) do table.insert(taken, take(member, holds, group)) end
return taken
