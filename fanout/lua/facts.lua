-- What is known of a call now, or was at its end.
-- ARGS: 1 tenant
-- Returns live (names and values), ended (the same), reserved (the same), absent or unknown.
local call = redis.call('HMGET', CALL, 'tenant', 'epoch')
local ended = redis.call('HGET', TOMBSTONE, 'tenant')
if (ended or call[1]) ~= ARGS[1] then return nothing_known() end
local answer = redis.call('HGETALL', FACTS)
table.insert(answer, 1, ended and 'ended' or call[2] and 'live' or 'reserved')
return answer
