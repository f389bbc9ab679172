-- An owner's look at its call, each sweep: is it still mine, has the inbox moved; its keys live on.
-- KEYS: call, inbox, receipts, tombstone
-- ARGV: 1 epoch, 2 claim, 3 ttl in ms
-- Returns {answer, last entry, last message}: held, missing, behind, fenced, ended.
if redis.call('EXISTS', KEYS[4]) == 1 then return {'ended', '', ''} end
local answer = fence(KEYS[1], ARGV[1], ARGV[2])
if answer ~= 'held' then return {answer, '', ''} end
for key = 1, 3 do redis.call('PEXPIRE', KEYS[key], ARGV[3]) end
local last = redis.call('HMGET', KEYS[1], 'last_entry', 'last_message')
return {'held', last[1] or '', last[2] or ''}
