-- Register a call for its owner, or restore the record of an owner that found it missing or lower. Repeating it is safe.
-- KEYS: call, inbox, receipts, tombstone
-- ARGV: 1 claim, 2 epoch held so far (0: a first claim), 3 tenant, 4 state, 5 record, 6 ttl in ms
-- Returns {answer, detail}: held (epoch), fenced, ended (tombstone).
local ended = redis.call('HGET', KEYS[4], 'record')
if ended then return {'ended', ended} end
local held = redis.call('HMGET', KEYS[1], 'epoch', 'claim', 'tenant')
if held[3] and held[3] ~= ARGV[3] then return {'fenced'} end

local epoch
if ARGV[2] == '0' then
  if held[2] == ARGV[1] then
    epoch = tonumber(held[1]) -- the answer to an earlier try was lost
  else
    epoch = math.max(math.floor(now_seconds() * 1000), tonumber(held[1] or '0') + 1)
  end
else
  epoch = tonumber(ARGV[2])
  if held[1] and tonumber(held[1]) >= epoch and held[2] ~= ARGV[1] then return {'fenced'} end
end
redis.call('HSET', KEYS[1], 'epoch', digits(epoch), 'claim', ARGV[1], 'tenant', ARGV[3], 'state', ARGV[4], 'record', ARGV[5])
for key = 1, 3 do redis.call('PEXPIRE', KEYS[key], ARGV[6]) end
return {'held', digits(epoch)}
