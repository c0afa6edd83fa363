-- ARGV: id, fence, progress, log event, status detail (JSON), block index, block record, block event; each '' when absent
-- Returns 'ok', 'pause', 'cancel' or 'fenced'.
local id, fence, progress, log, detail, index, record, block = unpack(ARGV)

-- The time from the last block, or the claim, to this one: total and histogram, its buckets those of metrics.py.
local function measure_block(key)
  local now = now_ms()
  local took = now - tonumber(redis.call('HGET', key, 'block_since') or now)
  redis.call('HSET', key, 'block_since', integer(now))
  count('block_ms', integer(took))
  for _, seconds in ipairs({1, 3, 10, 30, 100, 300, 1000, 3000, 10000}) do
    if took <= seconds * 1000 then return count('blocks:' .. seconds) end
  end
  count('blocks:inf')
end

local held, asked = holds(id, fence)
if not held then return fenced() end
local key = job_key(id)
if progress ~= '' then
  redis.call('HSET', key, 'progress', progress)
  emit(id, 'progress', '{"progress":' .. progress .. '}')
end
if detail ~= '' then redis.call('HSET', key, 'status_detail', cjson.decode(detail)) end
if index ~= '' and redis.call('HGET', prefix .. 'blocks:' .. id, index) ~= record then
  redis.call('HSET', prefix .. 'blocks:' .. id, index, record)
  -- Retries are for a job that does not get on.
  redis.call('HSET', key, 'stalled', 0, 'failures', 0)
  emit(id, 'block', block)
  measure_block(key)
end
if log ~= '' then emit(id, 'log', log) end
redis.call('HINCRBY', key, 'version', 1)
return asked
