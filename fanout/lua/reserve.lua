-- Hold a call id for a client that will come later; a message to it meanwhile is told so.
-- KEYS: call, tombstone
-- ARGV: 1 tenant, 2 ttl in ms
if redis.call('EXISTS', KEYS[1]) + redis.call('EXISTS', KEYS[2]) > 0 then return {'taken'} end
redis.call('HSET', KEYS[1], 'tenant', ARGV[1], 'state', 'reserved')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'reserved'}
