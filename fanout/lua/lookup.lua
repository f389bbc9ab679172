-- What is known of a call, and of one message in it.
-- ARGS: 1 tenant, 2 message id (or empty), 3 whether its owner is rung (1, 0): it looks whose the call is, and writes what
--       it has not written yet
-- Returns live (receipt or empty, epoch, claim, state, record), ended (receipt or empty, tombstone),
-- reserved (receipt or empty, what the reservation has for its client), absent or unknown.
local call = redis.call('HMGET', CALL, 'tenant', 'epoch', 'claim', 'state', 'record', 'session')
local ended = redis.call('HMGET', TOMBSTONE, 'tenant', 'record')
if (ended[1] or call[1]) ~= ARGS[1] then return nothing_known() end
local receipt = ARGS[2] ~= '' and redis.call('HGET', RECEIPTS, ARGS[2]) or ''
if ended[1] then return {'ended', receipt, ended[2]} end
if not call[2] then return {'reserved', receipt, call[6] or ''} end
if ARGS[3] == '1' then redis.call('SPUBLISH', BELL, cmsgpack.pack({VERSION, '', '', '', '', ''})) end
return {'live', receipt, call[2], call[3], call[4], call[5]}
