-- Write a call's whole memory again: Redis lost some of it, or a write came late.
-- ARGS: 1 epoch, 2 claim, 3 ttl in ms, 4 entries ever remembered, 5… the entries that are kept, oldest first
-- Returns held, settling (ms left), behind, fenced (epoch) or ended (tombstone).
local answer = fence(ARGS[1], ARGS[2])
if answer[1] ~= 'held' then return answer end
if PHASE == 'settling' then return {'settling', PHASE_LEFT} end
redis.call('DEL', MEMORY)
for place = 5, #ARGS do redis.call('RPUSH', MEMORY, ARGS[place]) end
redis.call('PEXPIRE', MEMORY, ARGS[3])
redis.call('HSET', CALL, 'memory_at', ARGS[4])
return {'held'}
