-- A tenant's live calls in one partition, newest first; entries whose call is gone are removed.
-- KEYS: 2 index
-- ARGS: 1 stem of the call keys, 2 most calls, 3 and 4 start (seconds) and id of the call to go on after (or empty)
-- Returns found, and for each call {id, epoch, claim, state, record}.
local index, stem, most, start, id = KEYS[2], ARGS[1], tonumber(ARGS[2]), ARGS[3], ARGS[4]
local found, offset = {}, 0
while #found < most do
  local from = start == '' and '+inf' or start
  local listed = redis.call('ZREVRANGEBYSCORE', index, from, '-inf', 'WITHSCORES', 'LIMIT', offset, 100)
  if #listed == 0 then break end
  for place = 1, #listed, 2 do
    local call_id = listed[place]
    if start == '' or tonumber(listed[place + 1]) < tonumber(start) or call_id < id then
      local call = redis.call('HMGET', stem .. call_id, 'epoch', 'claim', 'state', 'record')
      if not call[1] then
        redis.call('ZREM', index, call_id)
        offset = offset - 1
      elseif #found < most then
        table.insert(found, {call_id, call[1], call[2], call[3], call[4]})
      end
    end
  end
  offset = offset + #listed / 2
end
return {'found', unpack(found)}
