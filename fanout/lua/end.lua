-- End a call: tombstone, a terminal receipt for every message that has none, and the keys of the living go. Log and facts
-- stay as long as the tombstone; who watches is told. An orphan, whose owner is gone, is ended by another node, and only
-- if nobody has said since that he has it.
-- ARGS: 1 epoch, 2 claim, 3 call id, 4 tenant, 5 tombstone, 6 error (JSON), 7 node, 8 region, 9 tombstone ttl in ms,
--       10 of an orphan, when its owner last said that it has it, as it stands in the set of owned calls (or empty)
-- Returns held, settling (ms left), fenced (epoch), ended (another tombstone) or changed (it is no orphan any more).
local answer = fence(ARGS[1], ARGS[2])
if answer[1] == 'ended' and answer[2] == ARGS[5] then return {'held'} end
if ARGS[10] ~= '' then
  if answer[1] == 'ended' then return answer end
  if answer[1] ~= 'held' or redis.call('ZSCORE', OWNED, ARGS[3]) ~= ARGS[10] then return {'changed'} end
  if PHASE ~= 'normal' then return {'settling', PHASE_LEFT} end
elseif answer[1] == 'fenced' or answer[1] == 'ended' then
  -- A claim whose answer was lost left an epoch that its owner doesn't know: the claim is the proof then.
  if answer[1] == 'ended' or redis.call('HGET', CALL, 'claim') ~= ARGS[2] then return answer end
end
if PHASE == 'settling' then return {'settling', PHASE_LEFT} end

for _, entry in ipairs(redis.call('XRANGE', INBOX, '-', '+')) do
  local message_id = entry[2][2]
  local packed = redis.call('HGET', RECEIPTS, message_id)
  local receipt = packed and cmsgpack.unpack(packed)
  if receipt and not is_terminal(receipt) then
    receipt.status, receipt.error, receipt.node, receipt.region = 'failed', ARGS[6], ARGS[7], ARGS[8]
    receipt.reached.failed, receipt.by.failed = NOW, {ARGS[7], ARGS[8]}
    save(ARGS[3], message_id, receipt, ARGS[9])
  end
end
redis.call('DEL', CALL, INBOX, MEMORY, WATCHERS)
redis.call('ZREM', INDEX, ARGS[3])
redis.call('ZREM', OWNED, ARGS[3])
redis.call('HSET', TOMBSTONE, 'tenant', ARGS[4], 'record', ARGS[5])
for _, key in ipairs({TOMBSTONE, RECEIPTS, SETTLED, LOG, FACTS}) do redis.call('PEXPIRE', key, ARGS[9]) end
for _, channel in ipairs({FEED, SOUND}) do
  redis.call('SPUBLISH', channel, cmsgpack.pack({VERSION, 'ended', ARGS[5]}))
end
return {'held'}
