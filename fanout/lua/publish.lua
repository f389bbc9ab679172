-- Put a message into a call's inbox and ring its bell; a known message id gets its receipt and a second ring.
-- ARGS: 1 call id, 2 tenant, 3 message id, 4 this publisher's message before it that has no end yet (or empty),
--       5 fingerprint, 6 envelope, 7 item id, 8 wants response (1, 0), 9 node, 10 region, 11 channel to tell,
--       12 most entries, 13 most bytes, 14 ttl in ms, 15 was accepted before (1, 0),
--       16 error of a message whose call has ended (JSON), 17 tombstone ttl in ms
-- Returns receipt (packed), behind, absent, unknown, reserved, ended (tombstone), conflict or full.
local call_id, tenant, message_id, before = ARGS[1], ARGS[2], ARGS[3], ARGS[4]
local call = redis.call('HMGET', CALL, 'tenant', 'state', 'last_entry', 'last_message', 'inbox_bytes')
local ended = redis.call('HMGET', TOMBSTONE, 'tenant', 'record')
if (call[1] or ended[1]) ~= tenant then return nothing_known() end

local known = redis.call('HGET', RECEIPTS, message_id)
if known then
  local receipt = cmsgpack.unpack(known)
  if receipt.fingerprint ~= '' and receipt.fingerprint ~= ARGS[5] then return {'conflict'} end
  local told = false
  for _, channel in ipairs(receipt.tell) do told = told or channel == ARGS[11] end
  if not told then
    table.insert(receipt.tell, ARGS[11])
    known = cmsgpack.pack(receipt)
    redis.call('HSET', RECEIPTS, message_id, known)
  end
  if ended[1] and PHASE == 'normal' and not is_terminal(receipt) then
    -- Its owner ended the call without knowing of it, and nobody will say more.
    receipt.status, receipt.error, receipt.node, receipt.region = 'failed', ARGS[16], ARGS[9], ARGS[10]
    receipt.reached.failed, receipt.by.failed = NOW, {ARGS[9], ARGS[10]}
    save(call_id, message_id, receipt, ARGS[17])
    known = redis.call('HGET', RECEIPTS, message_id)
  end
  if not is_terminal(receipt) then
    redis.call('SPUBLISH', BELL, cmsgpack.pack({VERSION, receipt.entry, message_id, '', '', ''}))
  end
  return {'receipt', known}
end

if ended[1] then
  if ARGS[15] == '0' then return {'ended', ended[2]} end
  -- It was accepted and Redis has lost it since: once the owner has had the time to say what it knew, that is its end.
  if PHASE ~= 'normal' then return {'unknown'} end
  local receipt = {
    status = 'failed', wants_response = ARGS[8] == '1', item_id = ARGS[7], fingerprint = ARGS[5],
    reached = {failed = NOW}, by = {failed = {ARGS[9], ARGS[10]}}, node = ARGS[9], region = ARGS[10], error = ARGS[16],
    entry = '', size = 0, tell = {ARGS[11]},
  }
  save(call_id, message_id, receipt, ARGS[17])
  return {'receipt', redis.call('HGET', RECEIPTS, message_id)}
end
if call[2] == 'reserved' then return {'reserved'} end
if before ~= '' and redis.call('HEXISTS', RECEIPTS, before) == 0 then return {'behind'} end
local size = #ARGS[6]
local bytes = tonumber(call[5] or '0')
if redis.call('XLEN', INBOX) >= tonumber(ARGS[12]) or bytes + size > tonumber(ARGS[13]) then return {'full'} end

local entry = redis.call('XADD', INBOX, '*', 'm', message_id, 'e', ARGS[6])
redis.call('PEXPIRE', INBOX, ARGS[14])
redis.call('HSET', CALL, 'last_entry', entry, 'last_message', message_id, 'inbox_bytes', bytes + size)
local packed = cmsgpack.pack({
  status = 'accepted', wants_response = ARGS[8] == '1', item_id = ARGS[7], fingerprint = ARGS[5],
  reached = {accepted = NOW}, by = {accepted = {ARGS[9], ARGS[10]}}, node = ARGS[9], region = ARGS[10], error = '',
  entry = entry, size = size, tell = {ARGS[11]},
})
redis.call('HSET', RECEIPTS, message_id, packed)
redis.call('PEXPIRE', RECEIPTS, ARGS[14])
redis.call('SPUBLISH', BELL, cmsgpack.pack({VERSION, entry, message_id, call[3] or '', call[4] or '', ARGS[6]}))
return {'receipt', packed}
