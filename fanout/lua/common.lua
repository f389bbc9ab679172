-- What every script of the bus shares; put before each of them. A script touches one call's keys only, all in one slot.
local VERSION = 1
local RANK = {accepted = 0, delivered = 1, applied = 2, answered = 3, failed = 3, expired = 3, rejected = 3}

local function now_seconds()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- An epoch is milliseconds: exact in a double, but tostring() would write an exponent.
local function digits(number)
  return string.format('%.0f', number)
end

local function is_terminal(receipt)
  return RANK[receipt.status] == 3 or (receipt.status == 'applied' and not receipt.wants_response)
end

-- Write a receipt and tell every node that published the message.
local function save(receipts_key, call_id, message_id, receipt, ttl_ms)
  local packed = cmsgpack.pack(receipt)
  redis.call('HSET', receipts_key, message_id, packed)
  redis.call('PEXPIRE', receipts_key, ttl_ms)
  for _, channel in ipairs(receipt.tell) do
    redis.call('PUBLISH', channel, cmsgpack.pack({VERSION, 'receipt', message_id, call_id, receipt.node, 0, '', packed}))
  end
  return packed
end

-- Where the fence stands for a writer with this epoch and claim: held, missing, behind or fenced.
local function fence(call_key, epoch, claim)
  local held = redis.call('HMGET', call_key, 'epoch', 'claim')
  if not held[1] then return 'missing' end
  if held[2] == claim and held[1] == epoch then return 'held' end
  if tonumber(held[1]) < tonumber(epoch) then return 'behind' end
  return 'fenced'
end
