-- Write what an owner noted since its last flush: a batch of the call's log, its sound, and facts, in one moment.
-- ARGS: 1 epoch, 2 claim, 3 ttl in ms, 4 entry id of the batch (or empty: there is none), 5 batch without sound,
--       6 lowest entry id to keep, 7 the batch with sound in it (or empty: nobody wants it), 8 number of this flush among
--       those of its claim that change facts (0: it changes none), 9 forget all other facts (1, 0), 10 how many to set,
--       11… name and value of each of them, then the names of facts to delete
-- Returns held (ms left of the longest lease of a watcher, and of one that wants sound), behind, fenced (epoch) or
-- ended (tombstone).
local answer = fence(ARGS[1], ARGS[2])
if answer[1] ~= 'held' then return answer end

if ARGS[4] ~= '' then
  -- What is there already was written by an earlier try. It is published again: that one may not have come so far.
  if not redis.call('XRANGE', LOG, ARGS[4], '+', 'COUNT', 1)[1] then
    redis.call('XADD', LOG, 'MINID', ARGS[6], ARGS[4], 'b', ARGS[5])
    redis.call('PEXPIRE', LOG, ARGS[3])
  end
  redis.call('SPUBLISH', FEED, ARGS[5])
end
if ARGS[7] ~= '' then redis.call('SPUBLISH', SOUND, ARGS[7]) end

-- A flush that was given up and comes late changes nothing: what was in it was written again since.
if tonumber(ARGS[8]) > tonumber(redis.call('HGET', CALL, 'facts_at') or '0') then
  if ARGS[9] == '1' then redis.call('DEL', FACTS) end
  local deleted = 11 + 2 * tonumber(ARGS[10])
  for place = 11, deleted - 1, 2 do redis.call('HSET', FACTS, ARGS[place], ARGS[place + 1]) end
  for place = deleted, #ARGS do redis.call('HDEL', FACTS, ARGS[place]) end
  redis.call('PEXPIRE', FACTS, ARGS[3])
  redis.call('HSET', CALL, 'facts_at', ARGS[8])
end
return {'held', interest()}
