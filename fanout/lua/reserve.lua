-- Hold a call id for a client that will come later; a message to it meanwhile is told so.
-- ARGS: 1 tenant, 2 ttl in ms
-- Returns reserved or taken.
if redis.call('EXISTS', CALL) + redis.call('EXISTS', TOMBSTONE) > 0 then return {'taken'} end
redis.call('HSET', CALL, 'tenant', ARGS[1], 'state', 'reserved')
redis.call('PEXPIRE', CALL, ARGS[2])
return {'reserved'}
