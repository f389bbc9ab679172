-- Calls of one partition whose owner has not said for a while that it has them, those first of whom nothing was heard
-- longest; entries whose call is gone are removed.
-- KEYS: 2 owned
-- ARGS: 1 stem of the call keys, 2 how long the owner was silent, at least, in ms, 3 most calls
-- Returns settling (ms left: of nobody is anything known), or found, and for each call {when the owner last said that it
-- has it (ms), epoch, claim (empty: nobody's), state, record, ms since it was handed over (or -1)}.
local owned, stem = KEYS[2], ARGS[1]
if PHASE ~= 'normal' then return {'settling', PHASE_LEFT} end
local found, until_ms = {}, digits(NOW_MS - tonumber(ARGS[2]))
local late = redis.call('ZRANGEBYSCORE', owned, '-inf', until_ms, 'WITHSCORES', 'LIMIT', 0, ARGS[3])
for place = 1, #late, 2 do
  local call = redis.call('HMGET', stem .. late[place], 'epoch', 'claim', 'state', 'record', 'moved_at')
  if not call[1] then
    redis.call('ZREM', owned, late[place])
  else
    local moved_for = call[5] and NOW_MS - tonumber(call[5]) or -1
    table.insert(found, {late[place + 1], call[1], call[2], call[3], call[4], moved_for})
  end
end
return {'found', unpack(found)}
