-- What every script of the bus shares; put before each of them. A script touches the keys of one hash tag only.
-- KEYS[1]: the partition's generation. ARGV: 1 run id of this server, 2 settling in ms, 3 rewriting in ms.
-- KEYS of a call, in the scripts that have one: 2 call, 3 inbox, 4 receipts, 5 tombstone, 6 memory, 7 settled, 8 index,
-- 9 bell channel, 10 log, 11 facts, 12 watchers, 13 feed channel, 14 sound channel, 15 owned. Channels in a receipt's
-- `tell` carry the same tag, but are not declared.
-- Every answer is a list whose first element says how it went; every script may be repeated.
local VERSION = 1
local RANK = {accepted = 0, delivered = 1, applied = 2, answered = 3, failed = 3, expired = 3, rejected = 3}
local GENERATION, CALL, INBOX, RECEIPTS, TOMBSTONE, MEMORY, SETTLED, INDEX, BELL = unpack(KEYS)
local LOG, FACTS, WATCHERS, FEED, SOUND, OWNED = unpack(KEYS, 10)
local ARGS = {unpack(ARGV, 4)}

local TIME = redis.call('TIME')
local NOW = tonumber(TIME[1]) + tonumber(TIME[2]) / 1000000 -- seconds since the epoch
local NOW_MS = math.floor(NOW * 1000)

-- Milliseconds are exact in a double, but tostring() would write an exponent.
local function digits(number)
  return string.format('%.0f', number)
end

-- A server that this partition was not on before may lack what the last one had. It settles: owners restore their
-- records; then they rewrite what they know; only then is what it doesn't have known not to be.
-- Returns settling, rewriting or normal, and the milliseconds that are left of it.
local function phase_of_server()
  local settling, rewriting = tonumber(ARGV[2]), tonumber(ARGV[3])
  local held = redis.call('HMGET', GENERATION, 'server', 'since')
  local age = NOW_MS - tonumber(held[2] or '0')
  if held[1] ~= ARGV[1] or age < 0 then
    redis.call('HSET', GENERATION, 'server', ARGV[1], 'since', digits(NOW_MS))
    age = 0
  end
  if age < settling then return 'settling', settling - age end
  if age < settling + rewriting then return 'rewriting', settling + rewriting - age end
  return 'normal', 0
end
local PHASE, PHASE_LEFT = phase_of_server()

local function nothing_known()
  return {PHASE == 'normal' and 'absent' or 'unknown'}
end

-- Claims are ordered by epoch; two that share one after a roll-back, by their ids, so that both sides agree.
local function is_above(epoch, claim, other_epoch, other_claim)
  epoch, other_epoch = tonumber(epoch), tonumber(other_epoch)
  return epoch > other_epoch or (epoch == other_epoch and claim > other_claim)
end

-- Where the call stands for a writer with this epoch and claim: held, behind (restore it first), fenced or ended.
local function fence(epoch, claim)
  local ended = redis.call('HGET', TOMBSTONE, 'record')
  if ended then return {'ended', ended} end
  local held = redis.call('HMGET', CALL, 'epoch', 'claim')
  if held[2] == claim and held[1] == epoch then return {'held'} end
  if held[1] and is_above(held[1], held[2], epoch, claim) then return {'fenced', held[1]} end
  return {'behind'}
end

-- Nobody owns the call from now on, and it waits for its client. Its epoch stays, so that no older owner writes.
local function give_up()
  redis.call('HSET', CALL, 'claim', '', 'state', 'moving', 'moved_at', digits(NOW_MS))
end

local function is_terminal(receipt)
  return RANK[receipt.status] == 3 or (receipt.status == 'applied' and not receipt.wants_response)
end

-- How many milliseconds from now the longest lease of a watcher lasts, and the longest of one that wants sound; 0 for
-- none. A lease is the two moments at which a node's interest ends; one that is over is removed.
local function interest()
  local leases, events_until, sound_until = redis.call('HGETALL', WATCHERS), NOW_MS, NOW_MS
  for place = 1, #leases, 2 do
    local events, sound = string.match(leases[place + 1], '^(%d+) (%d+)$')
    if tonumber(events) <= NOW_MS then redis.call('HDEL', WATCHERS, leases[place]) end
    events_until, sound_until = math.max(events_until, tonumber(events)), math.max(sound_until, tonumber(sound))
  end
  return events_until - NOW_MS, sound_until - NOW_MS
end

-- The call's inbox needs this message no more.
local function trim(receipt)
  if receipt.entry == '' or redis.call('XDEL', INBOX, receipt.entry) == 0 then return end
  local bytes = tonumber(redis.call('HGET', CALL, 'inbox_bytes') or '0')
  redis.call('HSET', CALL, 'inbox_bytes', digits(math.max(0, bytes - receipt.size))) -- 0: the call's hash was lost
end

-- Note when a message had its end; what ended longer ago than receipts are kept is forgotten, a few at a time, so that
-- a long call stays bounded.
local function note_end(message_id, kept_ms, ttl_ms)
  redis.call('RPUSH', SETTLED, digits(NOW_MS) .. ' ' .. message_id)
  redis.call('PEXPIRE', SETTLED, ttl_ms)
  for _ = 1, 4 do
    local at, old_id = string.match(redis.call('LINDEX', SETTLED, 0) or '', '^(%d+) (.*)$')
    if not at or tonumber(at) > NOW_MS - tonumber(kept_ms) then break end
    redis.call('LPOP', SETTLED)
    redis.call('HDEL', RECEIPTS, old_id)
  end
end

-- Write a receipt and tell every node that published the message.
local function save(call_id, message_id, receipt, ttl_ms)
  local packed = cmsgpack.pack(receipt)
  redis.call('HSET', RECEIPTS, message_id, packed)
  redis.call('PEXPIRE', RECEIPTS, ttl_ms)
  for _, channel in ipairs(receipt.tell) do
    local envelope = {VERSION, 'receipt', message_id, call_id, receipt.node, 0, '', packed}
    redis.call('SPUBLISH', channel, cmsgpack.pack(envelope))
  end
end
