-- adjust: add or withdraw units of one SKU, once per change id.
--
-- KEYS[1] meta   hash  sluice:{<sale>:<segment>}:meta
-- KEYS[2] stock  hash  sluice:{<sale>:<segment>}:stock
-- ARGV[1] change  id of the change
-- ARGV[2] sku
-- ARGV[3] delta   units, negative to withdraw
--
-- Reply: {'ADJUSTED', left} | {'ALREADY', left then} | {'INSUFFICIENT', left} | {'UNKNOWN_SKU'}
--        | {'FENCED', epoch} | {'FROZEN', why}

-- inputs
local meta, stock = KEYS[1], KEYS[2]
local change, sku, delta = ARGV[1], ARGV[2], tonumber(ARGV[3])

-- checks
local m = redis.call('HMGET', meta, 'fence', 'epoch', 'adjust:' .. change, 'init:' .. sku)
if not m[1] then return {'FROZEN', 'meta'} end
if m[1] ~= FENCE then return {'FENCED', m[2] or '0'} end
if m[3] then return {'ALREADY', m[3]} end
if not m[4] then return {'UNKNOWN_SKU'} end
local left, total = tonumber(redis.call('HGET', stock, sku)), tonumber(m[4])
if not (left and total and delta) then return {'FROZEN', 'stock'} end
if left + delta < 0 then return {'INSUFFICIENT', tostring(left)} end

-- effects
redis.call('HSET', stock, sku, left + delta)
redis.call('HSET', meta, 'init:' .. sku, total + delta, 'adjust:' .. change, left + delta)
return {'ADJUSTED', tostring(left + delta)}
