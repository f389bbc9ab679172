-- Write an owner's verdict on a message, trim the inbox of it if that is the end, tell the nodes that published it.
-- KEYS: call, inbox, receipts, tombstone
-- ARGV: 1 epoch, 2 claim, 3 call id, 4 message id, 5 status, 6 reached (msgpack map), 7 item id, 8 error (JSON or empty),
--       9 wants response (1, 0), 10 node, 11 region, 12 ttl in ms
-- Returns {answer}: held, missing, behind, fenced, ended.
if redis.call('EXISTS', KEYS[4]) == 1 then return {'ended'} end
local answer = fence(KEYS[1], ARGV[1], ARGV[2])
if answer ~= 'held' then return {answer} end

local known = redis.call('HGET', KEYS[3], ARGV[4])
-- Without a record Redis has lost it; the verdict stands all the same, and the publisher's repeat will find it.
local receipt = known and cmsgpack.unpack(known) or {
  status = 'accepted', wants_response = ARGV[9] == '1', fingerprint = '', reached = {}, entry = '', size = 0, tell = {},
}
if known and (is_terminal(receipt) or RANK[receipt.status] >= RANK[ARGV[5]]) then return {'held'} end

receipt.status, receipt.item_id, receipt.error = ARGV[5], ARGV[7], ARGV[8]
receipt.node, receipt.region = ARGV[10], ARGV[11]
-- Two clocks meet here, Redis's and the owner's: a step is never before the step under it.
local floor = receipt.reached.accepted or 0
for step, at in pairs(cmsgpack.unpack(ARGV[6])) do
  receipt.reached[step] = receipt.reached[step] or math.max(at, floor)
end
save(KEYS[3], ARGV[3], ARGV[4], receipt, ARGV[12])
if is_terminal(receipt) and receipt.entry ~= '' and redis.call('XDEL', KEYS[2], receipt.entry) == 1 then
  redis.call('HINCRBY', KEYS[1], 'inbox_bytes', -receipt.size)
end
return {'held'}
