-- finish: remove tasks that are done, if this worker still owns them.
--
-- KEYS[1] processing  zset  sluice:delay:{<n>}:processing  task → lease_ms
-- KEYS[2] owner       hash  sluice:delay:{<n>}:owner       task → token
-- ARGV[1] token  the one of the claim
-- ARGV[2…] tasks
--
-- Reply: {'FINISHED', n}  tasks that were still owned

-- inputs
local processing, owner, token = KEYS[1], KEYS[2], ARGV[1]

-- checks
local mine = {}
for i = 2, #ARGV do
  if redis.call('HGET', owner, ARGV[i]) == token then mine[#mine + 1] = ARGV[i] end
end

-- effects
for _, task in ipairs(mine) do
  redis.call('ZREM', processing, task)
  redis.call('HDEL', owner, task)
end
return {'FINISHED', #mine}
