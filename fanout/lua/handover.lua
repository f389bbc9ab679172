-- An owner gives its call up, so that another node can take it over for its client.
-- ARGS: 1 epoch, 2 claim
-- Returns held, settling (ms left), behind, fenced (epoch) or ended (tombstone).
local answer = fence(ARGS[1], ARGS[2])
if answer[1] == 'behind' then
  local held = redis.call('HMGET', CALL, 'epoch', 'moved_at')
  if held[1] == ARGS[1] and held[2] then return {'held'} end -- the answer to an earlier try was lost
end
if answer[1] ~= 'held' then return answer end
if PHASE == 'settling' then return {'settling', PHASE_LEFT} end
give_up()
return {'held'}
