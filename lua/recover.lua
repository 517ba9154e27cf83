-- recover: make tasks ready again whose worker let its lease run out.
--
-- KEYS[1] ready       zset  sluice:delay:{<n>}:ready       task → due_ms
-- KEYS[2] processing  zset  sluice:delay:{<n>}:processing  task → lease_ms
-- KEYS[3] owner       hash  sluice:delay:{<n>}:owner       task → token
-- ARGV[1] most  tasks at the most
--
-- Reply: {'RECOVERED', n}

-- inputs
local ready, processing, owner, most = KEYS[1], KEYS[2], KEYS[3], ARGV[1]

-- checks
local now = clock()
local late = redis.call('ZRANGEBYSCORE', processing, '-inf', now, 'LIMIT', 0, most)

-- effects
for _, task in ipairs(late) do
  redis.call('ZREM', processing, task)
  redis.call('HDEL', owner, task)
  redis.call('ZADD', ready, now, task)
end
return {'RECOVERED', #late}
