-- Undo a take-over whose answer was lost: nobody owns the call then, and it waits for its client.
-- ARGS: 1 claim
-- Returns released (epoch), or other (it never ran, or was replaced since).
local held = redis.call('HMGET', CALL, 'epoch', 'claim')
if held[2] ~= ARGS[1] then return {'other'} end
give_up()
return {'released', held[1]}
