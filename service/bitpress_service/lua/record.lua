-- ARGV: id, fence, progress, log event, status detail, block index, block record, block event; each '' when absent
-- Returns 'ok', 'cancel' or 'fenced'.
local id, fence, progress, log, detail, index, record, block = unpack(ARGV)

local held, cancelled = holds(id, fence)
if not held then return 'fenced' end
local key = job_key(id)
if progress ~= '' then
  redis.call('HSET', key, 'progress', progress)
  emit(id, 'progress', '{"progress":' .. progress .. '}')
end
if detail ~= '' then redis.call('HSET', key, 'status_detail', detail) end
if index ~= '' and redis.call('HGET', prefix .. 'blocks:' .. id, index) ~= record then
  redis.call('HSET', prefix .. 'blocks:' .. id, index, record)
  -- Retries are for a job that does not get on.
  redis.call('HSET', key, 'stalled', 0, 'failures', 0)
  emit(id, 'block', block)
end
if log ~= '' then emit(id, 'log', log) end
redis.call('HINCRBY', key, 'version', 1)
return cancelled and 'cancel' or 'ok'
