-- Put a message into a call's inbox and ring its bell; a known message id gets its receipt and a second ring.
-- ARGS: 1 call id, 2 tenant, 3 message id, 4 this publisher's messages before it that have no end yet, one per line,
--       5 fingerprint, 6 envelope, 7 item id, 8 wants response (1, 0), 9 node, 10 region, 11 channel to tell,
--       12 most entries, 13 most bytes, 14 ttl in ms, 15 was accepted before (1, 0),
--       16 error of a message whose call has ended (JSON), 17 ms that tombstones and receipts are kept,
--       18 the receipt that this publisher has, if that says the end (or empty): another server gave it
-- Returns receipt (packed), behind, absent, unknown, reserved, ended (tombstone), conflict or full.
local call_id, tenant, message_id, before = ARGS[1], ARGS[2], ARGS[3], ARGS[4]
local call = redis.call('HMGET', CALL, 'tenant', 'state', 'last_entry', 'last_message', 'inbox_bytes')
local ended = redis.call('HMGET', TOMBSTONE, 'tenant', 'record')
if (call[1] or ended[1]) ~= tenant then return nothing_known() end

local function answer()
  return {'receipt', redis.call('HGET', RECEIPTS, message_id)}
end

-- Nobody will say more of a message that the owner of an ended call never knew.
local function fail(receipt)
  receipt.status, receipt.error, receipt.node, receipt.region = 'failed', ARGS[16], ARGS[9], ARGS[10]
  receipt.reached.failed, receipt.by.failed = NOW, {ARGS[9], ARGS[10]}
  save(call_id, message_id, receipt, ARGS[17])
end

-- What the publisher knows to be the end is the end here, too. A message that was applied stays in the inbox, or is put
-- there, until an owner has seen to it that its item is in the conversation.
local function is_applied(receipt)
  return receipt.status == 'applied' or receipt.status == 'answered'
end
local told = ARGS[18] ~= '' and cmsgpack.unpack(ARGS[18])

local known = redis.call('HGET', RECEIPTS, message_id)
if known then
  local receipt = cmsgpack.unpack(known)
  if receipt.fingerprint ~= '' and receipt.fingerprint ~= ARGS[5] then return {'conflict'} end
  local is_told = false
  for _, channel in ipairs(receipt.tell) do is_told = is_told or channel == ARGS[11] end
  if not is_told then
    table.insert(receipt.tell, ARGS[11])
    redis.call('HSET', RECEIPTS, message_id, cmsgpack.pack(receipt))
  end
  if told and not is_terminal(receipt) then
    for _, field in ipairs({'status', 'item_id', 'error', 'node', 'region', 'reached', 'by'}) do
      receipt[field] = told[field]
    end
    save(call_id, message_id, receipt, ended[1] and ARGS[17] or ARGS[14])
    if not is_applied(receipt) then trim(receipt) end
  elseif ended[1] and PHASE == 'normal' and not is_terminal(receipt) then
    fail(receipt)
  end
  if not is_terminal(receipt) then
    redis.call('SPUBLISH', BELL, cmsgpack.pack({VERSION, receipt.entry, message_id, '', '', ''}))
  end
  return answer()
end

local receipt = told or {status = 'accepted', wants_response = ARGS[8] == '1', item_id = ARGS[7], error = ''}
receipt.fingerprint, receipt.entry, receipt.size, receipt.tell = ARGS[5], '', 0, {ARGS[11]}
if ended[1] then
  if ARGS[15] == '0' then return {'ended', ended[2]} end
  if told then
    save(call_id, message_id, receipt, ARGS[17])
    return answer()
  end
  -- It was accepted and Redis has lost it since: its owner may still say what it knew.
  if PHASE ~= 'normal' then return {'unknown'} end
  receipt.reached, receipt.by = {}, {}
  fail(receipt)
  return answer()
end
if call[2] == 'reserved' then return {'reserved'} end
if told and not is_applied(told) then
  save(call_id, message_id, receipt, ARGS[14])
  note_end(message_id, ARGS[17], ARGS[14])
  return answer()
end
for earlier in string.gmatch(before, '[^\n]+') do
  if redis.call('HEXISTS', RECEIPTS, earlier) == 0 then return {'behind'} end
end
local size = #ARGS[6]
local bytes = tonumber(call[5] or '0')
if redis.call('XLEN', INBOX) >= tonumber(ARGS[12]) or bytes + size > tonumber(ARGS[13]) then return {'full'} end

local entry = redis.call('XADD', INBOX, '*', 'm', message_id, 'e', ARGS[6])
redis.call('PEXPIRE', INBOX, ARGS[14])
redis.call('HSET', CALL, 'last_entry', entry, 'last_message', message_id, 'inbox_bytes', digits(bytes + size))
receipt.entry, receipt.size = entry, size
if told then
  note_end(message_id, ARGS[17], ARGS[14])
else
  receipt.node, receipt.region = ARGS[9], ARGS[10]
  receipt.reached, receipt.by = {accepted = NOW}, {accepted = {ARGS[9], ARGS[10]}}
end
redis.call('HSET', RECEIPTS, message_id, cmsgpack.pack(receipt))
redis.call('PEXPIRE', RECEIPTS, ARGS[14])
-- Of one that was applied the bell says only that it is there: how far it came is in the receipt, for who reads.
local ring = {VERSION, entry, message_id, call[3] or '', call[4] or '', told and '' or ARGS[6]}
redis.call('SPUBLISH', BELL, cmsgpack.pack(ring))
return answer()
