-- schedule: note when tasks fall due; a task that is being worked on stays where it is.
--
-- KEYS[1] ready       zset  sluice:delay:{<n>}:ready       task → due_ms
-- KEYS[2] processing  zset  sluice:delay:{<n>}:processing  task → lease_ms
-- ARGV two a task: due_ms · task
--
-- Reply: {'SCHEDULED', n}

-- inputs
local ready, processing = KEYS[1], KEYS[2]

-- checks
local due = {}
for i = 1, #ARGV, 2 do
  if not redis.call('ZSCORE', processing, ARGV[i + 1]) then due[#due + 1] = {ARGV[i], ARGV[i + 1]} end
end

-- effects
for _, task in ipairs(due) do redis.call('ZADD', ready, task[1], task[2]) end
return {'SCHEDULED', #due}
