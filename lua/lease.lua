-- lease: renew the right to sell of a sale segment, admit edges and strike them off.
--
-- KEYS[1] meta  hash  sluice:{<sale>:<segment>}:meta
-- ARGV[1] fence     '<sale>:<segment>:<epoch>'
-- ARGV[2] lease_ms  how long from now, by Redis' clock
-- ARGV[3…] '+instance' admits, '-instance' strikes off
--
-- Reply: {'RENEWED', until_ms} | {'FENCED', epoch} | {'FROZEN', why}

-- inputs
local meta = KEYS[1]
local fence, lease = ARGV[1], tonumber(ARGV[2])

-- checks
local m = redis.call('HMGET', meta, 'fence', 'epoch')
if not m[1] then return {'FROZEN', 'meta'} end
if m[1] ~= fence then return {'FENCED', m[2] or '0'} end
local till = string.format('%d', tonumber(clock()) + lease)

-- effects
redis.call('HSET', meta, 'lease', till)
for i = 3, #ARGV do
  local field = 'edge:' .. string.sub(ARGV[i], 2)
  if string.sub(ARGV[i], 1, 1) == '+' then redis.call('HSET', meta, field, '1') else redis.call('HDEL', meta, field) end
end
return {'RENEWED', till}
