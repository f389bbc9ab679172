-- Let a call of a tenant begin, if one more may, and lease it its place.
-- KEYS: 2 leases (sorted set of call ids by their end in ms), 3 starts (list of ms), 4 usage of today
-- ARGS: 1 call id, 2 lease in ms, 3 place of the seconds among the counters, then the limits, each of which may be empty:
--       4 most calls at once, 5 most starts in a minute, 6 most ms of calls in a day
-- Returns admitted, settling (ms left: calls may live of which this server has not heard yet), or refused (which limit,
-- and of the starts ms until there are fewer).
local leases, starts, usage = KEYS[2], KEYS[3], KEYS[4]
local most_calls, most_starts, most_ms = tonumber(ARGS[4]), tonumber(ARGS[5]), tonumber(ARGS[6])
local MINUTE = 60000

local function ms_used()
  local ms, place, agents = 0, tonumber(ARGS[3]), redis.call('HGETALL', usage)
  for agent = 2, #agents, 2 do ms = ms + (cmsgpack.unpack(agents[agent])[place] or 0) end
  return ms
end

redis.call('ZREMRANGEBYSCORE', leases, '-inf', digits(NOW_MS))
if not redis.call('ZSCORE', leases, ARGS[1]) then -- otherwise the answer to an earlier try was lost
  if PHASE ~= 'normal' then return {'settling', PHASE_LEFT} end
  if most_calls and redis.call('ZCARD', leases) >= most_calls then return {'refused', 'concurrent', 0} end
  if most_starts then
    while tonumber(redis.call('LINDEX', starts, 0) or NOW_MS) <= NOW_MS - MINUTE do redis.call('LPOP', starts) end
    local too_many = redis.call('LLEN', starts) - most_starts
    if too_many >= 0 then
      local last = tonumber(redis.call('LINDEX', starts, too_many) or NOW_MS)
      return {'refused', 'starts', last + MINUTE - NOW_MS}
    end
  end
  if most_ms and ms_used() >= most_ms then return {'refused', 'minutes', 0} end
  if most_starts then
    redis.call('RPUSH', starts, digits(NOW_MS))
    redis.call('PEXPIRE', starts, MINUTE)
  end
end
redis.call('ZADD', leases, 'GT', digits(NOW_MS + ARGS[2]), ARGS[1])
local longest = redis.call('ZREVRANGEBYSCORE', leases, '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
redis.call('PEXPIRE', leases, digits(longest - NOW_MS))
return {'admitted'}
