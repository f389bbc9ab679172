-- A call's memory, for an owner that took the call over.
-- ARGS: 1 epoch, 2 claim
-- Returns held (entries ever remembered, the entries kept), behind, fenced (epoch) or ended (tombstone).
local answer = fence(ARGS[1], ARGS[2])
if answer[1] ~= 'held' then return answer end
return {'held', redis.call('HGET', CALL, 'memory_at') or '0', redis.call('LRANGE', MEMORY, 0, -1)}
