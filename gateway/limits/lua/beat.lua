-- A process says that it lives, and that it still holds what it holds.
--
-- KEYS: open reservations, processes, then two for each level of which something is held.
-- ARGV: call, process, now, lease in ms (0: it ends), number of levels, then for each holder: its step, reservation,
-- which level, how many units.
-- -> call, now, 1, processes that live.

local live, processes = KEYS[1], KEYS[2]
local process, now, lease = ARGV[2], clock(ARGV[3]), tonumber(ARGV[4])

-- `processes` first: where nothing can be written this says so, and the link takes it for a failure.
local _, wrong = ask('ZCARD', processes)
if wrong then redis.call('DEL', processes) end
if lease > 0 then
  redis.call('ZADD', processes, whole(now + lease), process)
  redis.call('PEXPIRE', processes, whole(2 * lease))
else
  redis.call('ZREM', processes, process)
end
redis.call('ZREMRANGEBYSCORE', processes, '-inf', whole(now))

-- Reservations whose process died, and those that never began, are forgotten after a day.
began(live, process)
redis.call('ZREMRANGEBYSCORE', live, whole(-max(0, now - DAY)), whole(max(0, now - DAY)))
redis.call('PEXPIRE', live, whole(2 * DAY))

local levels = {}
for index = 1, tonumber(ARGV[5]) do
  levels[index] = {key = KEYS[1 + 2 * index], held = KEYS[2 + 2 * index], kind = 'l'}
  level_at(levels[index], now)
end
for at = 6, #ARGV, 4 do
  local holding, level, units = ARGV[at + 1], levels[tonumber(ARGV[at + 2])], tonumber(ARGV[at + 3])
  if began(live, ARGV[at]) > 0 then
    mend(level)
    local before = numbers(redis.call('HGET', level.held, holding), '^(%d+)$') or 0
    if level.expired[holding] then  -- nobody could renew it in time, but it is held still
      level.expired[holding] = nil
      level.used = level.used + before
    end
    hold(level, holding, units - before, now, lease)
  end
end
return {ARGV[1], now, 1, redis.call('ZCARD', processes)}
