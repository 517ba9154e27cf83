-- lib/lines_of_many: the lines of a batch. Uses `parse` of lib/lines.

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
