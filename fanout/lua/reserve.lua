-- Hold a call id for a client that will come later; a message to it meanwhile is told so.
-- ARGS: 1 tenant, 2 ttl in ms, 3 what the reservation has for that client (or empty)
-- Returns reserved or taken.
local held = redis.call('HMGET', CALL, 'tenant', 'state')
if redis.call('EXISTS', TOMBSTONE) == 1 then return {'taken'} end
if held[1] and not (held[1] == ARGS[1] and held[2] == 'reserved') then return {'taken'} end
redis.call('HSET', CALL, 'tenant', ARGS[1], 'state', 'reserved', 'session', ARGS[3])
redis.call('PEXPIRE', CALL, ARGS[2])
return {'reserved'}
