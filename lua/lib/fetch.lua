-- lib/fetch: many fields of a hash at once; `unpack` takes fewer than 8,000 values.

-- The values of these fields, in their order; false where there is none.
local function fetch(key, fields)
  local values = {}
  for from = 1, #fields, 4000 do
    local part = redis.call('HMGET', key, unpack(fields, from, math.min(from + 3999, #fields)))
    if #fields <= 4000 then return part end
    for _, value in ipairs(part) do values[#values + 1] = value end
  end
  return values
end
