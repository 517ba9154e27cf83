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
local limits, units = redis.call('HMGET', meta, unpack(caps)), redis.call('HMGET', stock, unpack(skus))
for i, sku in ipairs(skus) do
  limit[sku], left[sku] = tonumber(limits[i]), tonumber(units[i])
  if limit[sku] and not left[sku] then return {'FROZEN', 'stock'} end
end
local found, record, mark = redis.call('HMGET', orders, unpack(fields)), {}, {}
for i = 1, count * 2 do record[fields[i]], mark[fields[i]] = found[i], found[i] or '' end

local function refusal(user, lines, token)
  if state == 'paused' then return 'PAUSED' end
  if state == 'closed' or now >= ends then return 'ENDED' end
  if state ~= 'open' or now < starts then return 'NOT_STARTED' end
  if token ~= 'live' then return 'TOKEN_EXPIRED' end
  for _, line in ipairs(lines) do if not limit[line[1]] then return 'UNKNOWN_SKU|' .. line[1] end end
  if room < 1 then return 'OVERLOADED' end
  for _, line in ipairs(lines) do
    local has, most = mark[user] == '' and 0 or held(mark[user], line[1]), limit[line[1]]
    if has + line[2] > most then return 'LIMIT|' .. has .. '|' .. most .. '|' .. line[1] end
  end
  for _, line in ipairs(lines) do if left[line[1]] < line[2] then return 'SOLD_OUT|' .. line[1] end end
end

local entries, changes, answers = {}, {}, {'ANSWERS', epoch, string.format('%d', now), ''}
local taken, times = 'Ah|' .. epoch, answers[3] .. '|' .. answers[3] .. '|0|-'
for i = 1, count do
  local id, user, lines, old = fields[i], fields[count + i], texts[i], record[fields[i]]
  local answer = not old and refusal(user, wanted[lines], ARGV[i * 4 + 1])
  if old and string.sub(old, 2, 2) == 'r' then
    answer = 'SPENT'
  elseif old then
    local same = string.match(old, '^%a%a|%d+|%d+|%d+|%d+|%d+|[^|]*|([^|]*)|') == lines
    answer = same and 'REPLAY|' .. old or 'REUSED'
  elseif not answer then
    seq, room = seq + 1, room - 1
    local place, first = string.format('%d', seq), mark[user] == ''
    for _, line in ipairs(wanted[lines]) do
      left[line[1]] = left[line[1]] - line[2]
      if not first then mark[user] = with(mark[user], line[1], line[2]) end
    end
    if first then mark[user] = lines end
    answer = 'OK|' .. place
    record[id] = table.concat({taken, place, times, lines, ARGV[i * 4 - 1]}, '|')
    entries[#entries + 1] = {epoch .. '-' .. place, id}
    changes[#changes + 1], changes[#changes + 2] = id, record[id]
    changes[#changes + 1], changes[#changes + 2] = user, mark[user]
  end
  answers[i + 4] = answer
end

-- effects; XADD first: an entry that Redis refuses (an older id) leaves nothing behind
for _, entry in ipairs(entries) do redis.call('XADD', journal, entry[1], 'o', entry[2]) end
local shelf = {}
for _, sku in ipairs(skus) do
  if limit[sku] then
    shelf[#shelf + 1] = sku .. '=' .. left[sku]
    if #entries > 0 then redis.call('HSET', stock, sku, left[sku]) end
  end
end
if #entries > 0 then
  redis.call('HSET', orders, unpack(changes))
  redis.call('HSET', meta, 'seq', seq)
end
answers[4] = table.concat(shelf, ',')
return answers
