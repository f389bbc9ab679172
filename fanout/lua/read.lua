-- A part of a call's inbox, which holds what has no terminal receipt; entries and last entry agree.
-- ARGS: 1 epoch, 2 claim, 3 entry to read after (or empty), 4 most entries, 5 bytes after which no entry is added
-- Returns held (last entry, last message, more (1, 0), entries as {id, message id, envelope, 0, or 1 if it was
-- applied, or 2 if it was answered, too}), behind, fenced (epoch) or ended (tombstone).
local answer = fence(ARGS[1], ARGS[2])
if answer[1] ~= 'held' then return answer end
local last = redis.call('HMGET', CALL, 'last_entry', 'last_message')
local entries, bytes, after, most = {}, 0, ARGS[3], tonumber(ARGS[4])
local more, done = 0, {applied = 1, answered = 2}
while true do
  local found = redis.call('XRANGE', INBOX, after == '' and '-' or '(' .. after, '+', 'COUNT', 1)[1]
  if not found then break end
  if #entries >= most or bytes >= tonumber(ARGS[5]) then
    more = 1
    break
  end
  after, bytes = found[1], bytes + #found[2][4]
  local receipt = redis.call('HGET', RECEIPTS, found[2][2])
  local how_far = receipt and done[cmsgpack.unpack(receipt).status] or 0
  table.insert(entries, {found[1], found[2][2], found[2][4], how_far})
end
return {'held', last[1] or '', last[2] or '', more, entries}
