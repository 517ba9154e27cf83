-- restore: put a sale segment that was made anew from the books in the place of the one that lost data.
--
-- KEYS[1…4]   meta stock orders journal  of the segment, types as in reserve.lua
-- KEYS[5…8]   the same, made anew under the next epoch, with a time to live; orders only where there are any
-- KEYS[9…12]  the same, of what is replaced, kept for whoever asks what was lost
-- ARGV[1] fence    of the epoch that begins, '<sale>:<segment>:<epoch>'
-- ARGV[2] epoch    the same as a number
-- ARGV[3] keep_ms  how long what is replaced is kept
--
-- Reply: {'RESTORED'} | {'ALREADY'} | {'FENCED', epoch} | {'FROZEN', why}

-- inputs
local present, anew, lost = {unpack(KEYS, 1, 4)}, {unpack(KEYS, 5, 8)}, {unpack(KEYS, 9, 12)}
local fence, epoch, keep = ARGV[1], tonumber(ARGV[2]), ARGV[3]

-- checks
-- what has another type is no segment of anybody's
local is_hash = redis.call('TYPE', present[1]).ok == 'hash'
local m = is_hash and redis.call('HMGET', present[1], 'fence', 'epoch') or {}
if m[1] == fence then return {'ALREADY'} end
if (tonumber(m[2]) or 0) >= epoch then return {'FENCED', m[2]} end
if redis.call('HGET', anew[1], 'fence') ~= fence then return {'FROZEN', 'meta'} end
if redis.call('EXISTS', anew[2], anew[4]) < 2 then return {'FROZEN', 'stock'} end

-- effects; UNLINK first: what a RENAME replaces is freed at once, which takes seconds for millions of orders
for i, key in ipairs(present) do
  if redis.call('EXISTS', key) == 1 then
    redis.call('UNLINK', lost[i])
    redis.call('RENAME', key, lost[i])
    redis.call('PEXPIRE', lost[i], keep)
  end
end
for i, key in ipairs(anew) do
  if redis.call('EXISTS', key) == 1 then
    redis.call('PERSIST', key)
    redis.call('RENAME', key, present[i])
  end
end
return {'RESTORED'}
