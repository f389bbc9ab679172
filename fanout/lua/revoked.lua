-- A part of a region's list of tokens that hold no more, in the order in which they came.
-- KEYS: 2 the list (sorted set of tokens by version), 3 the same by their end in ms
-- ARGS: 1 version to go on after, 2 most tokens
-- Returns found (since when this server is known, in ms, the list's last version or 0, then of each token itself, its
-- version, and its end in ms).
local since = redis.call('HGET', GENERATION, 'since')
local last = redis.call('ZREVRANGEBYSCORE', KEYS[2], '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or '0'
local answer = {'found', since, last}
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGS[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGS[2])
for place = 1, #found, 2 do
  for _, part in ipairs({found[place], found[place + 1], redis.call('ZSCORE', KEYS[3], found[place])}) do
    table.insert(answer, part)
  end
end
return answer
