-- settle: move orders forward along their states, the units staying with the buyer.
--
-- KEYS[1] meta    hash  sluice:{<sale>:<segment>}:meta
-- KEYS[2] orders  hash  sluice:{<sale>:<segment>}:orders
-- ARGV[1] fence  '<sale>:<segment>:<epoch>'
-- ARGV[2…] four an order: id · state 'P' pending payment | 'S' paid | 'D' refunded, kept | '-' as it is
--      · pay_before_ms ('0' leaves it) · refund '-' | 'due' | 'done' | 'due2' …
--
-- Reply: {'ANSWERS', answer…} | {'FENCED', epoch} | {'FROZEN', why}
-- answer: 'SETTLED|record' | 'ALREADY|record' | 'UNKNOWN' | 'CORRUPT|what'

-- inputs
local meta, orders = KEYS[1], KEYS[2]
local fence, count = ARGV[1], (#ARGV - 1) / 4

-- checks
local m = redis.call('HMGET', meta, 'fence', 'epoch')
if not m[1] then return {'FROZEN', 'meta'} end
if m[1] ~= fence then return {'FENCED', m[2] or '0'} end

-- Messages come late and twice: a state or a refund only ever moves to a higher rank.
local rank = {['-'] = -1, A = 0, P = 1, S = 2, E = 2, C = 2, F = 2, D = 3}
-- An order whose money went back may be paid again: refunds are due and done, round after round.
local function owing(refund)
  local word, round = string.match(refund, '^(%l*)(%d*)')
  if word == '' then return 0 end
  return (tonumber(round) or 1) * 2 - (word == 'due' and 1 or 0)
end
local now, records, answers = clock(), {}, {'ANSWERS'}
for i = 1, count do
  local id, state, pay_before, refund = ARGV[i * 4 - 2], ARGV[i * 4 - 1], ARGV[i * 4], ARGV[i * 4 + 1]
  local old = records[id] or redis.call('HGET', orders, id)
  local order = old and decode(old)
  if not old then
    answers[i + 1] = 'UNKNOWN'
  elseif not order then
    answers[i + 1] = 'CORRUPT|record'
  else
    local moved = false
    if rank[state] > rank[order.state] then
      order.state, moved = state, true
      if pay_before ~= '0' then order.pay_before = pay_before end
    end
    if owing(refund) > owing(order.refund) then order.refund, moved = refund, true end
    if moved then records[id] = encode(order, now) end
    answers[i + 1] = (moved and 'SETTLED|' or 'ALREADY|') .. (records[id] or old)
  end
end

-- effects
for id, record in pairs(records) do redis.call('HSET', orders, id, record) end
return answers
