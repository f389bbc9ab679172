-- Which boot of a node has a heartbeat, if any.
-- KEYS: 2 the node's key
-- Returns alive (boot id) or gone.
local boot = redis.call('GET', KEYS[2])
return boot and {'alive', boot} or {'gone'}
