-- reserve: take units for a batch of orders of one sale segment, each answered on its own.
--
-- KEYS[1] meta     hash    sluice:{<sale>:<segment>}:meta
-- KEYS[2] stock    hash    sluice:{<sale>:<segment>}:stock
-- KEYS[3] orders   hash    sluice:{<sale>:<segment>}:orders
-- KEYS[4] journal  stream  sluice:{<sale>:<segment>}:journal
-- ARGV[1] instance  the asking edge
-- ARGV[2…] four an order: id · user · lines 'sku=n,…' · token 'live' | 'expired'
--
-- Reply: {'ANSWERS', epoch, now_ms, 'sku=left,…', answer…} | {'FENCED', epoch}
--        | {'FROZEN', why} | {'UNKNOWN_EDGE'}
-- answer: 'OK|seq' | 'REPLAY|record' | 'SPENT' | 'REUSED' | 'PAUSED' | 'ENDED' | 'NOT_STARTED'
--        | 'TOKEN_EXPIRED' | 'UNKNOWN_SKU|sku' | 'OVERLOADED' | 'LIMIT|held|limit|sku' | 'SOLD_OUT|sku'

-- inputs
local meta, stock, orders, journal = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local instance, count = ARGV[1], (#ARGV - 1) / 4

-- checks
local m = redis.call('HMGET', meta, 'fence', 'epoch', 'state', 'starts', 'ends', 'lease', 'seq', 'jmax',
  'edge:' .. instance)
if m[1] and m[1] ~= FENCE then return {'FENCED', m[2] or '0'} end
local now, epoch, state = tonumber(clock()), m[2], m[3]
local starts, ends, lease, seq, room = tonumber(m[4]), tonumber(m[5]), tonumber(m[6]), tonumber(m[7]), tonumber(m[8])
if not (m[1] and epoch and state and starts and ends and lease and seq and room) then return {'FROZEN', 'meta'} end
if now > lease then return {'FROZEN', 'lease'} end
if not m[9] then return {'UNKNOWN_EDGE'} end
if seq > 0 and redis.call('EXISTS', orders, journal) < 2 then return {'FROZEN', 'orders'} end
room = room - redis.call('XLEN', journal)

local fields, texts, caps, limit, left = {}, {}, {}, {}, {}
for i = 1, count do
  fields[i], fields[count + i], texts[i] = ARGV[i * 4 - 2], '@' .. ARGV[i * 4 - 1], ARGV[i * 4]
end
local wanted, skus = parse_all(texts)
for i, sku in ipairs(skus) do caps[i] = 'limit:' .. sku end
local limits, units = fetch(meta, caps), fetch(stock, skus)
for i, sku in ipairs(skus) do
  limit[sku], left[sku] = tonumber(limits[i]), tonumber(units[i])
  if limit[sku] and not left[sku] then return {'FROZEN', 'stock'} end
end
-- what the hash holds, and over it what this batch changes
local found, changed = fetch(orders, fields), {}
local closed = state == 'paused' and 'PAUSED' or (state == 'closed' or now >= ends) and 'ENDED'
  or (state ~= 'open' or now < starts) and 'NOT_STARTED'

local entries, changes, n = {}, {}, 0
local answers = {'ANSWERS', epoch, string.format('%d', now), ''}
local head, times = 'Ah|' .. epoch .. '|', '|' .. answers[3] .. '|' .. answers[3] .. '|0|-|'
for i = 1, count do
  local id, user, lines = fields[i], fields[count + i], texts[i]
  local old, mark = changed[id] or found[i], changed[user] or found[count + i]
  local answer = not old and (closed or ARGV[i * 4 + 1] ~= 'live' and 'TOKEN_EXPIRED'
    or refusal(mark, wanted[lines], limit, left, room))
  if old and string.sub(old, 2, 2) == 'r' then
    answer = 'SPENT'
  elseif old then
    local same = string.match(old, '^%a%a|%d+|%d+|%d+|%d+|%d+|[^|]*|([^|]*)|') == lines
    answer = same and 'REPLAY|' .. old or 'REUSED'
  elseif not answer then
    seq, room, n = seq + 1, room - 1, n + 1
    for _, line in ipairs(wanted[lines]) do left[line[1]] = left[line[1]] - line[2] end
    mark = mark and with(mark, wanted[lines], 1) or lines
    -- a number joined to a text is written with up to 14 digits: more orders than a sale can have
    local record = head .. seq .. times .. lines .. '|' .. ARGV[i * 4 - 1]
    answer, entries[n], changed[id], changed[user] = 'OK|' .. seq, id, record, mark
    changes[n * 4 - 3], changes[n * 4 - 2], changes[n * 4 - 1], changes[n * 4] = id, record, user, mark
  end
  answers[i + 4] = answer
end

-- effects; XADD first: an entry that Redis refuses (an older id) leaves nothing behind
for i = 1, n do redis.call('XADD', journal, epoch .. '-' .. (seq - n + i), 'o', entries[i]) end
local shelf, counts = {}, {}
for _, sku in ipairs(skus) do
  if limit[sku] then
    shelf[#shelf + 1], counts[#counts + 1], counts[#counts + 2] = sku .. '=' .. left[sku], sku, left[sku]
  end
end
answers[4] = table.concat(shelf, ',')
if n == 0 then return answers end
redis.call('HSET', stock, unpack(counts))
redis.call('HSET', orders, unpack(changes))
redis.call('HSET', meta, 'seq', seq)
return answers
