-- claim: take due tasks for one worker, under a lease.
--
-- KEYS[1] ready       zset  sluice:delay:{<n>}:ready       task → due_ms
-- KEYS[2] processing  zset  sluice:delay:{<n>}:processing  task → lease_ms
-- KEYS[3] owner       hash  sluice:delay:{<n>}:owner       task → token
-- ARGV[1] token     the worker's, new for each claim
-- ARGV[2] lease_ms  how long from now, by Redis' clock
-- ARGV[3] most      tasks at the most
--
-- Reply: {'CLAIMED', task…}

-- inputs
local ready, processing, owner = KEYS[1], KEYS[2], KEYS[3]
local token, lease, most = ARGV[1], tonumber(ARGV[2]), ARGV[3]

-- checks
local now = tonumber(clock())
local tasks = redis.call('ZRANGEBYSCORE', ready, '-inf', now, 'LIMIT', 0, most)

-- effects
local reply = {'CLAIMED'}
for i, task in ipairs(tasks) do
  redis.call('ZREM', ready, task)
  redis.call('ZADD', processing, string.format('%d', now + lease), task)
  redis.call('HSET', owner, task, token)
  reply[i + 1] = task
end
return reply
