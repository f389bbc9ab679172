-- A node watches a call for a while: its lease, which the owner is told of, and what the call's log has.
-- Who starts anew (no position) has missed nothing: what it hears first follows the last id, whatever its number. The
-- owner passes over a number whenever the log is written again after a pause, for those who come back with a position.
-- ARGS: 1 tenant, 2 node, 3 lease in ms, 4 wants sound (1, 0: no longer than its last lease with 1 says), 5 position to
--       read after (or empty: read nothing), 6 most batches, 7 bytes after which no batch is added; there are more where
--       the batches that came don't reach the last id
-- Returns live (first id kept or empty, last id or empty, fact `session` or empty, record, then batches), reserved (the
-- same, without a record), ended (tombstone, first id or empty, last id or empty, empty, then batches), absent or unknown.
local call = redis.call('HMGET', CALL, 'tenant', 'epoch', 'record')
local ended = redis.call('HMGET', TOMBSTONE, 'tenant', 'record')
if (ended[1] or call[1]) ~= ARGS[1] then return nothing_known() end

local oldest = redis.call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1]
local newest = redis.call('XREVRANGE', LOG, '+', '-', 'COUNT', 1)[1]
local first, last = oldest and oldest[1] or '', newest and newest[1] or ''
local answer
if ended[1] then
  answer = {'ended', ended[2], first, last, ''}
else
  local held = redis.call('HGET', WATCHERS, ARGS[2])
  local until_ms = digits(NOW_MS + tonumber(ARGS[3]))
  local sound_until = ARGS[4] == '1' and until_ms or held and string.match(held, ' (%d+)$') or '0'
  redis.call('HSET', WATCHERS, ARGS[2], until_ms .. ' ' .. sound_until)
  local events_left, sound_left = interest()
  redis.call('PEXPIRE', WATCHERS, events_left)
  redis.call('SPUBLISH', BELL, cmsgpack.pack({VERSION, 'watch', events_left, sound_left}))
  local session = redis.call('HGET', FACTS, 'session') or ''
  answer = {call[2] and 'live' or 'reserved', first, last, session, call[3] or ''}
end

local after, bytes = ARGS[5], 0
for _ = 1, after == '' and 0 or tonumber(ARGS[6]) do
  local found = redis.call('XRANGE', LOG, '(' .. after, '+', 'COUNT', 1)[1]
  if not found or bytes >= tonumber(ARGS[7]) then break end
  after, bytes = found[1], bytes + #found[2][2]
  table.insert(answer, found[2][2])
end
return answer
