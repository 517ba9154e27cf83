-- lib/clock: the time that counts.

-- Redis' clock in milliseconds.
local function clock()
  local time = redis.call('TIME')
  return string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
end
