-- raise: put verified data of a sale segment under the next epoch; the last step before its scripts load.
--
-- KEYS[1] meta  hash  sluice:{<sale>:<segment>}:meta
-- ARGV[1] fence  of the epoch that ends, '<sale>:<segment>:<epoch>'
-- ARGV[2] next   fence of the epoch that begins
-- ARGV[3] epoch  the epoch that begins
-- ARGV[4] seq    the highest sequence that PostgreSQL knows; the segment goes on above it
--
-- Reply: {'RAISED'} | {'ALREADY'} | {'FENCED', epoch} | {'FROZEN', why}

-- inputs
local meta = KEYS[1]
local fence, following, epoch, seq = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

-- checks
local m = redis.call('HMGET', meta, 'fence', 'epoch', 'seq')
if not (m[1] and tonumber(m[3]) and seq) then return {'FROZEN', 'meta'} end
if m[1] == following then return {'ALREADY'} end
if m[1] ~= fence then return {'FENCED', m[2] or '0'} end

-- effects; the lease stays lapsed until the warden renews it under the new fence
redis.call('HSET', meta, 'fence', following, 'epoch', epoch, 'seq', math.max(seq, tonumber(m[3])), 'lease', '0')
return {'RAISED'}
