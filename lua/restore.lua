-- restore: put a sale segment that was made anew from the books in the place of the one that lost data.
--
-- KEYS[1…4]   meta stock orders journal  of the segment, types as in reserve.lua
-- KEYS[5…8]   the same, made anew under the next epoch; orders may be missing where the books have none
-- KEYS[9…12]  the same, of what is replaced, kept for whoever asks what was lost
-- ARGV[1] fence    of the epoch that begins, '<sale>:<segment>:<epoch>'
-- ARGV[2] keep_ms  how long what is replaced is kept
--
-- Reply: {'RESTORED'} | {'ALREADY'} | {'FROZEN', why}

-- inputs
local present, anew, lost = {unpack(KEYS, 1, 4)}, {unpack(KEYS, 5, 8)}, {unpack(KEYS, 9, 12)}
local fence, keep = ARGV[1], ARGV[2]

-- checks
if redis.call('HGET', present[1], 'fence') == fence then return {'ALREADY'} end
if redis.call('HGET', anew[1], 'fence') ~= fence then return {'FROZEN', 'meta'} end
if redis.call('EXISTS', anew[2], anew[4]) < 2 then return {'FROZEN', 'stock'} end

-- effects
for i, key in ipairs(present) do
  if redis.call('EXISTS', key) == 1 then
    redis.call('RENAME', key, lost[i])
    redis.call('PEXPIRE', lost[i], keep)
  end
end
for i, key in ipairs(anew) do
  if redis.call('EXISTS', key) == 1 then redis.call('RENAME', key, present[i]) end
end
return {'RESTORED'}
