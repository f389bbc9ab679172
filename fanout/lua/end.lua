-- End a call: tombstone, a terminal receipt for every message that has none, and the keys of the living go. Repeatable.
-- KEYS: call, inbox, receipts, tombstone
-- ARGV: 1 epoch, 2 claim, 3 call id, 4 tenant, 5 tombstone, 6 error (JSON), 7 node, 8 region, 9 tombstone ttl in ms
-- Returns {answer}: held, fenced.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'claim')
-- A claim whose answer was lost left an epoch that its owner doesn't know: the claim is the proof then.
if held[1] and held[2] ~= ARGV[2] and tonumber(held[1]) >= tonumber(ARGV[1]) then return {'fenced'} end

local at = now_seconds()
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do
  local message_id = entry[2][2]
  local packed = redis.call('HGET', KEYS[3], message_id)
  local receipt = packed and cmsgpack.unpack(packed)
  if receipt and not is_terminal(receipt) then
    receipt.status, receipt.error, receipt.node, receipt.region = 'failed', ARGV[6], ARGV[7], ARGV[8]
    receipt.reached.failed = at
    save(KEYS[3], ARGV[3], message_id, receipt, ARGV[9])
  end
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[4], 'tenant', ARGV[4], 'record', ARGV[5])
redis.call('PEXPIRE', KEYS[4], ARGV[9])
redis.call('PEXPIRE', KEYS[3], ARGV[9])
return {'held'}
