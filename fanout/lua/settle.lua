-- Write an owner's verdict on a message, and in the same step what the call is to remember of it; trim the inbox
-- of it if that is the end; tell the nodes that published it.
-- ARGS: 1 epoch, 2 claim, 3 call id, 4 message id, 5 status, 6 reached (msgpack map), 7 item id, 8 error (JSON or
--       empty), 9 wants response (1, 0), 10 node, 11 region, 12 ttl in ms, 13 ms that receipts are kept,
--       14 memory entry (or empty), 15 its position, 16 memory entries to keep with it
-- Returns held, settling (ms left), behind, fenced (epoch), ended (tombstone), or rewrite (the memory is not where it
-- should be; nothing was written).
local status = ARGS[5]
local answer = fence(ARGS[1], ARGS[2])
if answer[1] ~= 'held' then return answer end
-- Until it is sure that no higher claim was rolled back, nothing is written that a backend may rely on.
if PHASE == 'settling' and status ~= 'delivered' then return {'settling', PHASE_LEFT} end

if ARGS[14] ~= '' then
  local position, stands_at = tonumber(ARGS[15]), tonumber(redis.call('HGET', CALL, 'memory_at') or '0')
  if stands_at == position then
    redis.call('RPUSH', MEMORY, ARGS[14])
    if ARGS[16] == '0' then redis.call('DEL', MEMORY) else redis.call('LTRIM', MEMORY, '-' .. ARGS[16], -1) end
    redis.call('PEXPIRE', MEMORY, ARGS[12])
    redis.call('HSET', CALL, 'memory_at', digits(position + 1))
  elseif stands_at ~= position + 1 or redis.call('LINDEX', MEMORY, -1) ~= ARGS[14] then
    return {'rewrite'}
  end
end

local known = redis.call('HGET', RECEIPTS, ARGS[4])
-- Without a receipt Redis has lost the message. An end stands all the same, and the publisher's repeat will find it; of
-- anything less the repeat must put the message in again, or nobody would see it to its end.
local receipt = known and cmsgpack.unpack(known) or {
  status = status, wants_response = ARGS[9] == '1', fingerprint = '', reached = {}, by = {},
  entry = '', size = 0, tell = {},
}
if not known and not is_terminal(receipt) then return {'held'} end
if known and (is_terminal(receipt) or RANK[receipt.status] >= RANK[status]) then
  if is_terminal(receipt) then trim(receipt) end
  return {'held'}
end

receipt.status, receipt.item_id, receipt.error = status, ARGS[7], ARGS[8]
receipt.node, receipt.region = ARGS[10], ARGS[11]
-- Two clocks meet here, Redis's and the owner's: a step is never before the step under it.
local floor = receipt.reached.accepted or 0
for step, at in pairs(cmsgpack.unpack(ARGS[6])) do
  if not receipt.reached[step] then
    receipt.reached[step], receipt.by[step] = math.max(at, floor), {ARGS[10], ARGS[11]}
  end
end
save(ARGS[3], ARGS[4], receipt, ARGS[12])
if is_terminal(receipt) then
  trim(receipt)
  note_end(ARGS[4], ARGS[13], ARGS[12])
end
return {'held'}
