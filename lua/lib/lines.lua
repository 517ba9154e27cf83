-- lib/lines: the text 'sku=n,sku=n' of an order's lines and of a buyer's mark.

-- The lines of a text, as a list of {sku, n}.
local function parse(text)
  local list = {}
  for sku, n in string.gmatch(text, '([^=,]+)=(%d+)') do list[#list + 1] = {sku, tonumber(n)} end
  return list
end

-- The units of one SKU in a mark, which is searched and not parsed: it may name a hundred others.
local function held(mark, sku)
  local name = sku .. '='
  if string.sub(mark, 1, #name) == name then return tonumber(string.match(mark, '^%d+', #name + 1)) end
  local _, last = string.find(mark, ',' .. name, 1, true)
  return last and tonumber(string.match(mark, '^%d+', last + 1)) or 0
end

-- A mark also counts its buyer's orders that have ended, under a name that no SKU has: their records stay
-- as long as the sale.
local ENDED = {{'#', 1}}

-- The mark with the units of an order more (sign 1) or fewer (sign -1), in one pass over it; a SKU without
-- units leaves it.
local function with(mark, lines, sign)
  local known, new = {}, ''
  for _, line in ipairs(lines) do
    local sku, had = line[1], held(mark, line[1])
    local has = had + sign * line[2]
    local text = has > 0 and sku .. '=' .. has .. ',' or ''
    if had > 0 then known[sku] = text else new = new .. text end
  end
  local whole = mark == '' and '' or mark .. ','
  local marked = next(known) and string.gsub(whole, '([^=,]+)=%d+,', known) or whole
  return string.sub(marked .. new, 1, -2)
end
