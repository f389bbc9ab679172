-- Count what calls of a tenant used since they last said so, and renew or end their leases. A source's counters only
-- grow: what was counted of it is remembered for each day, so that a report that comes again, or late, adds nothing.
-- KEYS: 2 leases (sorted set of call ids by their end in ms), 3 usage of today (hash by agent: counters), then further
--       keys of usage, and of what was reported (hash by source: 1 or 0, whether it is over, then counters)
-- ARGS: 1 place of the seconds among the counters, 2 reports (msgpack: call id, source, agent, lease in ms or 0, and of
--       each day the places of usage and of what was reported among the keys, and the counters), 3… ttl in ms of each of
--       the further keys
-- Returns counted (living calls, ms of calls today).
local leases, today = KEYS[2], KEYS[3]
local totals = {} -- by key and agent

local function total_of(usage, agent)
  local agents = totals[usage] or {}
  totals[usage] = agents
  if not agents[agent] then
    local held = redis.call('HGET', usage, agent)
    agents[agent] = held and cmsgpack.unpack(held) or {}
  end
  return agents[agent]
end

for _, report in ipairs(cmsgpack.unpack(ARGS[2])) do
  local call_id, source, agent, lease_ms, days = unpack(report)
  local was_over = false
  for _, day in ipairs(days) do
    local total, reported, counters = total_of(KEYS[day[1]], agent), KEYS[day[2]], day[3]
    local held = redis.call('HGET', reported, source)
    local counted = held and cmsgpack.unpack(held) or {0}
    was_over = was_over or counted[1] == 1
    if lease_ms == 0 then counted[1] = 1 end
    for place, count in ipairs(counters) do
      local before = counted[place + 1] or 0
      counted[place + 1] = math.max(before, count)
      total[place] = (total[place] or 0) + math.max(0, count - before)
    end
    redis.call('HSET', reported, source, cmsgpack.pack(counted))
  end
  if lease_ms == 0 then
    redis.call('ZREM', leases, call_id)
  elseif not was_over then
    redis.call('ZADD', leases, 'GT', digits(NOW_MS + lease_ms), call_id) -- where it lives now it may have a longer one
  end
end
for usage, agents in pairs(totals) do
  for agent, total in pairs(agents) do redis.call('HSET', usage, agent, cmsgpack.pack(total)) end
end
for place = 4, #KEYS do redis.call('PEXPIRE', KEYS[place], ARGS[place - 1]) end

redis.call('ZREMRANGEBYSCORE', leases, '-inf', digits(NOW_MS))
local longest = redis.call('ZREVRANGEBYSCORE', leases, '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
if longest then redis.call('PEXPIRE', leases, digits(longest - NOW_MS)) end
local ms, agents = 0, redis.call('HGETALL', today)
for agent = 2, #agents, 2 do ms = ms + (cmsgpack.unpack(agents[agent])[tonumber(ARGS[1])] or 0) end
return {'counted', redis.call('ZCARD', leases), ms}
