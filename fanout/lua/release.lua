-- Undo a take-over whose answer was lost: nobody owns the call then; its epoch stays, so that no older owner writes.
-- ARGS: 1 claim
-- Returns released (epoch), or other (it never ran, or was replaced since).
local held = redis.call('HMGET', CALL, 'epoch', 'claim')
if held[2] ~= ARGS[1] then return {'other'} end
redis.call('HSET', CALL, 'claim', '')
return {'released', held[1]}
