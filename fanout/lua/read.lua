-- A call's inbox, whole: what has a terminal receipt is no longer in it. One script, so that entries and last entry agree.
-- KEYS: call, inbox
-- ARGV: 1 most entries
-- Returns {last entry, last message, entries}, an entry as {id, {field, value, …}}.
local last = redis.call('HMGET', KEYS[1], 'last_entry', 'last_message')
return {last[1] or '', last[2] or '', redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', ARGV[1])}
