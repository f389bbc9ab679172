-- Put tokens on a region's list of those that hold no more. Those that end by now anyway leave it, a few at a time.
-- KEYS: 2 the list (sorted set of tokens by version: the order in which they came), 3 the same by their end in ms
-- ARGS: 1 most tokens, 2… each token and its end in ms
-- Returns revoked, or full (there is no room for one of them; those before it are on the list).
local list, ends = KEYS[2], KEYS[3]
for _, token in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', digits(NOW_MS), 'LIMIT', 0, 100)) do
  redis.call('ZREM', list, token)
  redis.call('ZREM', ends, token)
end
local version = tonumber(redis.call('ZREVRANGEBYSCORE', list, '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or '0')
local answer = {'revoked'}
for place = 2, #ARGS, 2 do
  local token, until_ms = ARGS[place], tonumber(ARGS[place + 1])
  local held = tonumber(redis.call('ZSCORE', ends, token) or '0')
  if until_ms > math.max(held, NOW_MS) then
    if held == 0 and redis.call('ZCARD', ends) >= tonumber(ARGS[1]) then
      answer = {'full'}
      break
    end
    version = math.max(version + 1, NOW_MS)
    redis.call('ZADD', list, digits(version), token)
    redis.call('ZADD', ends, digits(until_ms), token)
  end
end
local longest = redis.call('ZREVRANGEBYSCORE', ends, '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
for _, key in ipairs(longest and {list, ends} or {}) do redis.call('PEXPIRE', key, digits(longest - NOW_MS)) end
return answer
