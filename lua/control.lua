-- control: bring a sale's state, window and limits to a newer configuration (open, pause, close, …).
--
-- KEYS[1] meta  hash  sluice:{<sale>:<segment>}:meta
-- ARGV[1] fence  '<sale>:<segment>:<epoch>'
-- ARGV[2] cfg · ARGV[3] state · ARGV[4] starts_ms · ARGV[5] ends_ms
-- ARGV[6…] two a SKU: sku · per_user
--
-- Reply: {'SET', cfg} | {'STALE', cfg} | {'FENCED', epoch} | {'FROZEN', why}

-- inputs
local meta = KEYS[1]
local fence, cfg, state, starts, ends = unpack(ARGV, 1, 5)

-- checks
local m = redis.call('HMGET', meta, 'fence', 'epoch', 'cfg')
if not (m[1] and tonumber(m[3])) then return {'FROZEN', 'meta'} end
if m[1] ~= fence then return {'FENCED', m[2] or '0'} end
if tonumber(m[3]) >= tonumber(cfg) then return {'STALE', m[3]} end
local fields = {'cfg', cfg, 'state', state, 'starts', starts, 'ends', ends}
for i = 6, #ARGV, 2 do fields[#fields + 1], fields[#fields + 2] = 'limit:' .. ARGV[i], ARGV[i + 1] end

-- effects
redis.call('HSET', meta, unpack(fields))
return {'SET', cfg}
