-- Put a message into a call's inbox and ring its bell; a known message id gets its receipt and a second ring.
-- KEYS: call, inbox, receipts, tombstone, bell channel
-- ARGV: 1 call id, 2 tenant, 3 message id, 4 fingerprint, 5 envelope, 6 item id, 7 wants response (1, 0), 8 node, 9 region,
--       10 channel to tell, 11 most entries, 12 most bytes, 13 ttl in ms
-- Returns {answer, detail}: receipt, absent, reserved, ended, conflict, full.
local call_id, message_id = ARGV[1], ARGV[3]
local call = redis.call('HMGET', KEYS[1], 'tenant', 'state', 'last_entry', 'last_message', 'inbox_bytes')
local ended = redis.call('HMGET', KEYS[4], 'tenant', 'record')
local tenant = call[1] or ended[1]
if tenant ~= ARGV[2] then return {'absent'} end

local known = redis.call('HGET', KEYS[3], message_id)
if known then
  local receipt = cmsgpack.unpack(known)
  if receipt.fingerprint ~= '' and receipt.fingerprint ~= ARGV[4] then return {'conflict'} end
  local told = false
  for _, channel in ipairs(receipt.tell) do told = told or channel == ARGV[10] end
  if not told then
    table.insert(receipt.tell, ARGV[10])
    known = cmsgpack.pack(receipt)
    redis.call('HSET', KEYS[3], message_id, known)
  end
  if not is_terminal(receipt) then
    redis.call('PUBLISH', KEYS[5], cmsgpack.pack({VERSION, receipt.entry, message_id, '', '', ''}))
  end
  return {'receipt', known}
end

if ended[1] then return {'ended', ended[2]} end
if call[2] == 'reserved' then return {'reserved'} end
local size = #ARGV[5]
local bytes = tonumber(call[5] or '0')
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[11]) or bytes + size > tonumber(ARGV[12]) then return {'full'} end

local entry = redis.call('XADD', KEYS[2], '*', 'm', message_id, 'e', ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[13])
redis.call('HSET', KEYS[1], 'last_entry', entry, 'last_message', message_id, 'inbox_bytes', bytes + size)
local packed = cmsgpack.pack({
  status = 'accepted', wants_response = ARGV[7] == '1', item_id = ARGV[6], fingerprint = ARGV[4],
  reached = {accepted = now_seconds()}, node = ARGV[8], region = ARGV[9], error = '',
  entry = entry, size = size, tell = {ARGV[10]},
})
redis.call('HSET', KEYS[3], message_id, packed)
redis.call('PEXPIRE', KEYS[3], ARGV[13])
redis.call('PUBLISH', KEYS[5], cmsgpack.pack({VERSION, entry, message_id, call[3] or '', call[4] or '', ARGV[5]}))
return {'receipt', packed}
