-- Write a call's record: for a new call, for an owner that found it missing or lower, or to take the call over.
-- ARGS: 1 fresh, restore or take, 2 claim, 3 epoch (restore), 4 and 5 epoch and claim expected to be replaced (take),
--       6 latest time in ms, 7 call id, 8 tenant, 9 state, 10 record, 11 start (seconds), 12 ttl in ms
-- A take-over rings the bell, without a message: whoever had the call looks at once.
-- Returns held (epoch, ms left of the longest lease of a watcher, and of one that wants sound; of a take-over also the
-- entries ever remembered, the memory, and the facts as names and values), fenced (epoch), ended (tombstone), absent,
-- unknown, settling (ms left), late (Redis's time in ms) or changed (epoch, claim).
local mode, claim, tenant = ARGS[1], ARGS[2], ARGS[8]
local ended = redis.call('HMGET', TOMBSTONE, 'tenant', 'record')
if ended[1] then
  if ended[1] ~= tenant then return nothing_known() end
  return {'ended', ended[2]}
end
local held = redis.call('HMGET', CALL, 'epoch', 'claim', 'tenant')
if held[3] and held[3] ~= tenant then
  if mode == 'take' then return nothing_known() end
  return {'fenced', held[1] or '0'}
end

local epoch
if held[2] == claim then
  epoch = tonumber(held[1]) -- the answer to an earlier try was lost
elseif NOW_MS > tonumber(ARGS[6]) then
  return {'late', digits(NOW_MS)} -- whoever sent this has given up, and may have gone elsewhere
elseif mode == 'restore' then
  epoch = tonumber(ARGS[3])
  if held[1] and is_above(held[1], held[2], epoch, claim) then return {'fenced', held[1]} end
elseif mode == 'fresh' then
  if held[1] then return {'fenced', held[1]} end
  epoch = NOW_MS
else
  if PHASE ~= 'normal' then return {'settling', PHASE_LEFT} end
  if not held[1] then return {'absent'} end
  if held[1] ~= ARGS[4] or held[2] ~= ARGS[5] then return {'changed', held[1], held[2]} end
  epoch = math.max(NOW_MS, tonumber(held[1]) + 1)
end
redis.call('HSET', CALL, 'epoch', digits(epoch), 'claim', claim, 'tenant', tenant, 'state', ARGS[9], 'record', ARGS[10])
redis.call('HDEL', CALL, 'session', 'moved_at') -- of the reservation, which this call was; of who gave it up
if held[2] ~= claim then redis.call('HDEL', CALL, 'facts_at') end -- each claim numbers its own
redis.call('ZADD', INDEX, ARGS[11], ARGS[7])
redis.call('ZADD', OWNED, digits(NOW_MS), ARGS[7])
for _, key in ipairs({CALL, INBOX, RECEIPTS, MEMORY, SETTLED, INDEX, LOG, FACTS, OWNED}) do
  redis.call('PEXPIRE', key, ARGS[12])
end
local events_left, sound_left = interest()
if mode ~= 'take' then return {'held', digits(epoch), events_left, sound_left} end
redis.call('SPUBLISH', BELL, cmsgpack.pack({VERSION, '', '', '', '', ''}))
-- In the same step: an owner that had the claim without the memory could lose it to a Redis that comes back empty.
local memory_at, memory = redis.call('HGET', CALL, 'memory_at') or '0', redis.call('LRANGE', MEMORY, 0, -1)
return {'held', digits(epoch), events_left, sound_left, memory_at, memory, redis.call('HGETALL', FACTS)}
