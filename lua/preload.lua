-- preload: put a new sale segment on the shelf; what is there already is never written over.
--
-- KEYS[1] meta    hash  sluice:{<sale>:<segment>}:meta
-- KEYS[2] stock   hash  sluice:{<sale>:<segment>}:stock
-- KEYS[3] orders  hash  sluice:{<sale>:<segment>}:orders
-- ARGV[1] fence  '<sale>:<segment>:<epoch>'
-- ARGV[2] epoch · ARGV[3] state · ARGV[4] starts_ms · ARGV[5] ends_ms · ARGV[6] cfg · ARGV[7] jmax
-- ARGV[8…] three a SKU: sku · units · per_user
--
-- Reply: {'PRELOADED'} | {'EXISTS', fence} | {'CORRUPT', what}

-- inputs
local meta, stock, orders = KEYS[1], KEYS[2], KEYS[3]
local fence, epoch, state, starts, ends, cfg, jmax = unpack(ARGV, 1, 7)

-- checks
local there = redis.call('HGET', meta, 'fence')
if there then return {'EXISTS', there} end
if redis.call('EXISTS', meta, stock, orders) > 0 then return {'CORRUPT', 'keys without a fence'} end
local shelf, fields = {}, {'fence', fence, 'epoch', epoch, 'state', state, 'starts', starts, 'ends', ends,
  'cfg', cfg, 'jmax', jmax, 'lease', '0', 'seq', '0'}
for i = 8, #ARGV, 3 do
  local sku, units, per_user = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if not (tonumber(units) and tonumber(per_user)) then return {'CORRUPT', sku} end
  shelf[#shelf + 1], shelf[#shelf + 2] = sku, units
  fields[#fields + 1], fields[#fields + 2] = 'limit:' .. sku, per_user
  fields[#fields + 1], fields[#fields + 2] = 'init:' .. sku, units
end

-- effects
redis.call('HSET', stock, unpack(shelf))
redis.call('HSET', meta, unpack(fields))
return {'PRELOADED'}
