-- A node says that it lives: to all by a key, to its own feed by a message.
-- KEYS: 2 the node's key. ARGS: 1 boot id, 2 ttl in ms (0: it leaves), 3 channel, 4 message
-- Returns ok (Redis's time in seconds, phase).
if ARGS[2] == '0' then
  if redis.call('GET', KEYS[2]) == ARGS[1] then redis.call('DEL', KEYS[2]) end
else
  redis.call('SET', KEYS[2], ARGS[1], 'PX', ARGS[2])
  redis.call('SPUBLISH', ARGS[3], ARGS[4])
end
return {'ok', string.format('%.6f', NOW), PHASE}
