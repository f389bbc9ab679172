-- Take one of what flows at a rate, if it is there (GCRA): what is kept is when all that was taken will have flowed. Not
-- to be repeated if the answer may have been lost, but by who can bear to take two.
-- KEYS: 2 when that is (microseconds)
-- ARGS: 1 microseconds for each, 2 microseconds for as many as may be taken at once
-- Returns taken, or wait (microseconds until there is one).
local each, burst, now = tonumber(ARGS[1]), tonumber(ARGS[2]), tonumber(TIME[1]) * 1000000 + tonumber(TIME[2])
local flowed = math.max(now, tonumber(redis.call('GET', KEYS[2]) or '0'))
flowed = math.min(flowed, now + burst) + each -- the clock of another server may be behind
if flowed > now + burst then return {'wait', flowed - now - burst} end
redis.call('SET', KEYS[2], digits(flowed), 'PX', digits(math.ceil((flowed - now) / 1000)))
return {'taken'}
