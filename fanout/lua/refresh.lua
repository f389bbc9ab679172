-- An owner's look at its call: is it still mine, has the inbox moved, does anybody hear its bell; its keys live on.
-- ARGS: 1 epoch, 2 claim, 3 call id, 4 ttl in ms
-- Returns held (last entry, last message, subscribers of the bell, ms left of the longest lease of a watcher, and of one
-- that wants sound), behind, fenced (epoch) or ended (tombstone).
local answer = fence(ARGS[1], ARGS[2])
if answer[1] ~= 'held' then return answer end
redis.call('ZADD', OWNED, digits(NOW_MS), ARGS[3])
for _, key in ipairs({CALL, INBOX, RECEIPTS, MEMORY, SETTLED, INDEX, LOG, FACTS, OWNED}) do
  redis.call('PEXPIRE', key, ARGS[4])
end
local last = redis.call('HMGET', CALL, 'last_entry', 'last_message')
return {'held', last[1] or '', last[2] or '', redis.call('PUBSUB', 'SHARDNUMSUB', BELL)[2], interest()}
