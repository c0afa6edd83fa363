-- Stands before every script. KEYS[1] is the prefix of all keys; it holds the hash tag, so that
-- they all live on one node and a script may build the names it needs.
--
--   job:<id>                hash    the job; `rank` is its place in the queue, `stalled` its attempts
--                                   in a row without a new block, `asked` is 'cancel' or 'pause' once
--                                   a user asked for it, `at:<state>` ms when it last came into a state;
--                                   `method`, `model`, `find` (the name in lower case) and `labels` are
--                                   what lists are filtered by; `devices` it asks for ('': all there are),
--                                   `holds` so many of `cluster` while it runs, together with the jobs of the
--                                   same `group`, which were claimed with it; `passed_over_at` ms since when
--                                   smaller jobs have overtaken it; `sweep` that it is a member of, or ''
--   sweep:<id>              zset    ids of its members; ids sort by creation
--   queue                   zset    id -> rank: higher priority first, then older first
--   sequence                string  counts the jobs, for their order in the queue
--   delayed                 zset    id -> ms when it goes back to the queue
--   leases                  zset    id -> ms when the lease runs out
--   events:<id>             stream  type, data (JSON)
--   blocks:<id>             hash    block index -> record (JSON)
--   jobs:<tenant>           zset    ids of a tenant; ids sort by creation
--   jobs:<tenant>:<state>   zset    the same by state
--   idempotency:<tenant>:<sha256 of the key>   string  '<id> <fingerprint of the request>'
--   key-ids                 hash    id of an API key -> its SHA-256
--   key:<sha256>            hash    id, tenant, scopes, name, created_at, expires_at (or ''), last_used_at
--   rate:<key id>           hash    what a key may ask: tokens that were left, `at` that ms
--   dispatchers             set     who has reported; those whose report is gone are removed when they are seen
--   dispatcher:<owner>      hash    report (JSON), `at` ms; expires
--   trash                   set     prefixes of objects whose job was deleted, until they are gone too
--   plans                   list    ids of plans that are asked for, oldest first
--   plan:<id>               hash    request, later answer (JSON); expires, so an id in the list may have none
--   counters                hash    what happened since the store was made, for metrics
--   webhooks:<tenant>       set     ids of a tenant's webhooks
--   webhook:<id>            hash    url, events, secret, old_secret until old_until, disabled: why
--   deliveries:<webhook>    list    ids, newest first
--   delivery:<id>           hash    webhook, type, job, state, tries, status, error, due; expires
--   due                     zset    ids of deliveries -> ms of the next try

local prefix = KEYS[1]
local queue, delayed, leases = prefix .. 'queue', prefix .. 'delayed', prefix .. 'leases'

local function job_key(id) return prefix .. 'job:' .. id end

local function key_key(digest) return prefix .. 'key:' .. digest end

local function sweep_key(id) return prefix .. 'sweep:' .. id end

local function plan_key(id) return prefix .. 'plan:' .. id end

local due = prefix .. 'due'
local function webhook_key(id) return prefix .. 'webhook:' .. id end
local function delivery_key(id) return prefix .. 'delivery:' .. id end

-- Lua prints large numbers as 1.7e+12.
local function integer(number) return string.format('%.0f', number) end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_valid(created_at, expires_at)
  return created_at and (expires_at == '' or tonumber(expires_at) > now_ms())
end

-- The event's time is that of its stream id, which is returned.
local function emit(id, type, data)
  return redis.call('XADD', prefix .. 'events:' .. id, 'MAXLEN', '~', 10000, '*', 'type', type, 'data', data)
end

local function count(name, by) redis.call('HINCRBY', prefix .. 'counters', name, by or 1) end

local function read(id, ...) return redis.call('HMGET', job_key(id), ...) end

local function job(id) return redis.call('HGETALL', job_key(id)) end

-- A message to a webhook, `job` '' for one that tells of none; kept for 30 days.
local function add_delivery(id, webhook, type, job)
  local now = integer(now_ms())
  redis.call('HSET', delivery_key(id), 'id', id, 'webhook', webhook, 'type', type, 'job', job, 'state', 'pending',
    'tries', 0, 'created_at', now, 'due', now)
  redis.call('PEXPIRE', delivery_key(id), 30 * 24 * 3600 * 1000)
  redis.call('ZADD', due, now, id)
  redis.call('LPUSH', prefix .. 'deliveries:' .. webhook, id)
  redis.call('LTRIM', prefix .. 'deliveries:' .. webhook, 0, 99)
end

local function end_delivery(id, state, status, failure)
  redis.call('ZREM', due, id)
  redis.call('HSET', delivery_key(id), 'state', state, 'status', status, 'error', failure)
end

-- Tells those of the tenant's webhooks that asked for it that a job came into a state.
local function notify(tenant, id, state, event_id)
  local type = 'job.' .. state
  for _, webhook in ipairs(redis.call('SMEMBERS', prefix .. 'webhooks:' .. tenant)) do
    local wants = redis.call('HMGET', webhook_key(webhook), 'events', 'disabled')
    if not wants[2] and (' ' .. wants[1] .. ' '):find(' ' .. type .. ' ', 1, true) then
      add_delivery(webhook .. '-' .. id .. '-' .. event_id, webhook, type, id)
    end
  end
end

local function rank_of(priority, sequence) return integer(-priority * 1e12 + sequence) end

-- Moves a job to a state, `failure` (JSON or '') saying why.
local function become(id, state, failure)
  local was = read(id, 'tenant', 'state', 'attempt')
  local index = prefix .. 'jobs:' .. was[1] .. ':'
  if was[2] then redis.call('ZREM', index .. was[2], id) end
  redis.call('ZADD', index .. state, 0, id)
  redis.call('HSET', job_key(id), 'state', state, 'error', failure, 'status_detail', '',
    'at:' .. state, integer(now_ms()))
  redis.call('HINCRBY', job_key(id), 'version', 1)
  local shown = failure == '' and 'null' or failure
  local event_id = emit(id, 'state', '{"state":"' .. state .. '","attempt":' .. was[3] .. ',"error":' .. shown .. '}')
  notify(was[1], id, state, event_id)
end

local function finish_as(id, state, failure)
  redis.call('ZREM', leases, id)
  if state ~= 'cancelled' then redis.call('HDEL', job_key(id), 'asked') end
  redis.call('HSET', job_key(id), 'finished_at', integer(now_ms()))
  count('finished:' .. state)
  become(id, state, failure)
end

-- Takes a job off the queue without anything in its place.
local function dequeue(id)
  redis.call('ZREM', queue, id)
  redis.call('ZREM', delayed, id)
end

local function enqueue(id, delay_ms, failure)
  redis.call('ZREM', leases, id)
  redis.call('HDEL', job_key(id), 'asked')
  if delay_ms > 0 then
    redis.call('ZADD', delayed, integer(now_ms() + delay_ms), id)
  else
    redis.call('ZADD', queue, read(id, 'rank')[1], id)
  end
  become(id, 'queued', failure)
end

local function pause(id, failure)
  redis.call('ZREM', leases, id)
  redis.call('HDEL', job_key(id), 'asked')
  become(id, 'paused', failure)
end

-- A worker is done with a job that has not ended: it goes where the user wants it, else to the queue.
local function settle(id, asked, delay_ms, failure)
  if asked == 'cancel' then
    finish_as(id, 'cancelled', '')
  elseif asked == 'pause' then
    pause(id, failure)
  else
    enqueue(id, delay_ms, failure)
  end
end

-- Gives a job a fence that no attempt has had: greater than the last one, and ending with nine digits that were drawn.
-- A Redis that was set back by a second (a failover, a backup) counts what it has forgotten once more; an attempt from
-- that second must not find its own fence in force again.
local function raise_fence(id, drawn)
  local turns = math.floor(read(id, 'fence')[1] / 1e9)
  redis.call('HSET', job_key(id), 'fence', integer((turns + 1) * 1e9 + drawn))
end

-- Whether `fence` is that of the attempt that runs now, and what the user asked of it: 'cancel', 'pause' or 'ok'.
local function holds(id, fence)
  local current = read(id, 'fence', 'state', 'asked')
  local running = current[2] == 'running' or current[2] == 'pausing' or current[2] == 'cancelling'
  return running and current[1] == fence, current[3] or 'ok'
end

-- {id, tenant, owner, cluster or '', devices} of each job that runs; of those that were claimed together, and hold
-- devices together, one has them.
local function holdings()
  local found, groups = {}, {}
  for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
    local on = read(id, 'tenant', 'owner', 'cluster', 'holds', 'group')
    local group = on[5] or id
    table.insert(found, {id, on[1], on[2], on[3], groups[group] and 0 or on[4]})
    groups[group] = true
  end
  return found
end

-- Whether `more` jobs of a tenant would be too many to wait; '' is no limit.
local function is_full(tenant, most, more)
  local index = prefix .. 'jobs:' .. tenant
  local waiting = redis.call('ZCARD', index .. ':queued') + redis.call('ZCARD', index .. ':paused')
  return most ~= '' and waiting + more > tonumber(most)
end

-- The state of a tenant's job, or false when there is none.
local function state_of(id, tenant)
  local current = read(id, 'tenant', 'state')
  return current[1] and (tenant == '' or current[1] == tenant) and current[2]
end

-- The answer to a write of an attempt that has lost its lease.
local function fenced()
  count('fenced_writes')
  return 'fenced'
end
