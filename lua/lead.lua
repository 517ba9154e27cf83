-- lead: become the leading warden, stay it, or step down; guards no data, the fence does that.
--
-- KEYS[1] warden  string  sluice:warden  token of the warden that leads, with a lease (PX)
-- ARGV[1] token     the asking warden's
-- ARGV[2] lease_ms  how long to lead without being heard of again; '0' steps down
--
-- Reply: {'LEADER'} | {'FOLLOWER'}

-- inputs
local warden, token, lease = KEYS[1], ARGV[1], ARGV[2]

-- checks
local leader = redis.call('GET', warden)
if leader and leader ~= token then return {'FOLLOWER'} end

-- effects
if lease == '0' then
  redis.call('DEL', warden)
  return {'FOLLOWER'}
end
redis.call('SET', warden, token, 'PX', lease)
return {'LEADER'}
