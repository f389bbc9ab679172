-- What a tenant used on some days.
-- KEYS: 2… usage of a day each (hash by agent: counters)
-- Returns found (of each key agents and counters).
local days = {'found'}
for place = 2, #KEYS do days[place] = redis.call('HGETALL', KEYS[place]) end
return days
