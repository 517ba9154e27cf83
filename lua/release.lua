-- release: put the units of orders back, once each; runs when Redis is full (flags=allow-oom).
--
-- KEYS[1] meta    hash  sluice:{<sale>:<segment>}:meta
-- KEYS[2] stock   hash  sluice:{<sale>:<segment>}:stock
-- KEYS[3] orders  hash  sluice:{<sale>:<segment>}:orders
-- ARGV[1] fence  '<sale>:<segment>:<epoch>'
-- ARGV[2…] four an order: id · state 'E' expired | 'C' cancelled | 'F' failed | 'D' refunded · lines · user
--      (lines and user make the tombstone of an order that Redis has never seen)
--
-- Reply: {'ANSWERS', answer…} | {'FENCED', epoch} | {'FROZEN', why}
-- answer: 'RELEASED|record' | 'ALREADY|record' | 'TOMBSTONE|record' | 'CORRUPT|what'

-- inputs
local meta, stock, orders = KEYS[1], KEYS[2], KEYS[3]
local fence, count = ARGV[1], (#ARGV - 1) / 4

-- checks
local m = redis.call('HMGET', meta, 'fence', 'epoch', 'seq')
if not m[1] then return {'FROZEN', 'meta'} end
if m[1] ~= fence then return {'FENCED', m[2] or '0'} end
if tonumber(m[3]) > 0 and redis.call('EXISTS', orders, stock) < 2 then return {'FROZEN', 'orders'} end
local now, records, marks, left, answers = clock(), {}, {}, {}, {'ANSWERS'}

local function corruption(order, lines)
  marks[order.user] = marks[order.user] or redis.call('HGET', orders, '@' .. order.user) or ''
  for _, line in ipairs(lines) do
    if held(marks[order.user], line[1]) < line[2] then return 'mark' end
    left[line[1]] = left[line[1]] or tonumber(redis.call('HGET', stock, line[1]))
    if not left[line[1]] then return 'stock' end
  end
end

for i = 1, count do
  local id, state, lines, user = ARGV[i * 4 - 2], ARGV[i * 4 - 1], ARGV[i * 4], ARGV[i * 4 + 1]
  local old = records[id] or redis.call('HGET', orders, id)
  if not old then
    local tombstone = {state = state, units = 'r', epoch = 0, seq = 0, accepted = now, pay_before = 0,
      refund = '-', lines = lines, user = user}
    records[id] = encode(tombstone, now)
    answers[i + 1] = 'TOMBSTONE|' .. records[id]
  else
    local order = decode(old)
    local taken = order and order.units ~= 'r' and parse(order.lines)
    local what = not order and 'record' or taken and corruption(order, taken)
    if what then
      answers[i + 1] = 'CORRUPT|' .. what
    elseif not taken then
      answers[i + 1] = 'ALREADY|' .. old
    else
      for _, line in ipairs(taken) do left[line[1]] = left[line[1]] + line[2] end
      marks[order.user] = with(with(marks[order.user], taken, -1), ENDED, 1)
      order.state, order.units = state, 'r'
      records[id] = encode(order, now)
      answers[i + 1] = 'RELEASED|' .. records[id]
    end
  end
end

-- effects
for id, record in pairs(records) do redis.call('HSET', orders, id, record) end
for user, mark in pairs(marks) do if mark ~= '' then redis.call('HSET', orders, '@' .. user, mark) end end
for sku, n in pairs(left) do redis.call('HSET', stock, sku, n) end
return answers
