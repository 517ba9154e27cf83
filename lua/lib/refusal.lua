-- lib/refusal: why the units of an order cannot be taken. Uses `held` of lib/lines.

-- Orders of one buyer that may end before he gets no more in this sale: each leaves its record.
local ENDED_MAX = 100

-- The answer to it, or nothing when they can. `limit` and `left`: units a buyer may hold and units there
-- are, by SKU; `room`: entries that the journal still takes.
local function refusal(mark, lines, limit, left, room)
  for _, line in ipairs(lines) do if not limit[line[1]] then return 'UNKNOWN_SKU|' .. line[1] end end
  if room < 1 then return 'OVERLOADED' end
  local ended = mark and held(mark, '#') or 0
  if ended >= ENDED_MAX then return 'LIMIT|' .. ended .. '|' .. ENDED_MAX .. '|' .. lines[1][1] end
  for _, line in ipairs(lines) do
    local has, most = mark and held(mark, line[1]) or 0, limit[line[1]]
    if has + line[2] > most then return 'LIMIT|' .. has .. '|' .. most .. '|' .. line[1] end
  end
  for _, line in ipairs(lines) do if left[line[1]] < line[2] then return 'SOLD_OUT|' .. line[1] end end
end
