-- Buyer check, stock check, take one unit, append to the stream.
-- KEYS[1] stock, KEYS[2] users who bought, KEYS[3] journal; ARGV: user, order, time
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then return -2 end
local left = tonumber(redis.call('GET', KEYS[1]) or '-1')
if left <= 0 then return -1 end
redis.call('DECR', KEYS[1])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[3], '*', 'o', ARGV[2], 'u', ARGV[1], 't', ARGV[3])
return 1
