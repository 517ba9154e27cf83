-- lib/lines: the text 'sku=n,sku=n' of an order's lines and of a buyer's mark.

-- The lines of a text, as a list of {sku, n}.
local function parse(text)
  local list = {}
  for sku, n in string.gmatch(text, '([^=,]+)=(%d+)') do list[#list + 1] = {sku, tonumber(n)} end
  return list
end

-- Each distinct text parsed once, as text -> lines, and every SKU that they name, once.
local function parse_all(texts)
  local wanted, skus, seen = {}, {}, {}
  for _, text in ipairs(texts) do
    if not wanted[text] then
      wanted[text] = parse(text)
      for _, line in ipairs(wanted[text]) do
        if not seen[line[1]] then seen[line[1]] = true; skus[#skus + 1] = line[1] end
      end
    end
  end
  return wanted, skus
end

-- The units of one SKU in a mark.
local function held(mark, sku)
  for _, line in ipairs(parse(mark)) do if line[1] == sku then return line[2] end end
  return 0
end

-- The mark with n more units of a SKU (fewer when n is negative); a SKU without units leaves it.
local function with(mark, sku, n)
  if mark == '' then return sku .. '=' .. n end
  local parts, total = {}, held(mark, sku) + n
  for _, line in ipairs(parse(mark)) do
    if line[1] ~= sku then parts[#parts + 1] = line[1] .. '=' .. line[2] end
  end
  if total > 0 then parts[#parts + 1] = sku .. '=' .. total end
  return table.concat(parts, ',')
end
