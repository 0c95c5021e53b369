-- Decides about all charges in one step: all enforced limits grant, or nothing is charged.
--
-- KEYS: open reservations, what this step was granted, then the accounts' keys.
-- ARGV: call, holding, step, now, lease in ms, number of charges, then for each charge: kind, amount, period,
-- whether it is enforced (1), units wanted, the least that do.
-- -> call, now, 1 (granted), 0 (refused) or -1 (void: the caller has given up), then for each charge: units
-- granted (-1: none, it is refused or would be), used, credit, window.

local live, given = KEYS[1], KEYS[2]
local holding, step, now = ARGV[2], ARGV[3], clock(ARGV[4])
local lease, count = tonumber(ARGV[5]), tonumber(ARGV[6])

if began(live, step) ~= 0 then return {ARGV[1], now, -1} end

local accounts = accounts_at(now, count, 3, 7, 6)
local grants, denied, partial = {}, false, false
for index, account in ipairs(accounts) do
  local at = 7 + (index - 1) * 6
  local wanted, least = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local free = max(0, account.amount - account.used)
  if least > free then
    grants[index] = -1
    denied = denied or ARGV[at + 3] == '1'
  else
    grants[index] = math.min(wanted, free)
  end
  partial = partial or grants[index] ~= wanted
end

local answer = {ARGV[1], now, denied and 0 or 1}
if denied then
  for index, account in ipairs(accounts) do tell(answer, account, grants[index] == -1 and -1 or 0) end
  return answer
end
-- The first of these writes is refused where there is no memory left, so all are or none is.
redis.call('ZADD', live, whole(max(1, now)), step)
if partial then redis.call('SET', given, table.concat(grants, ' '), 'PX', whole(DAY)) end
for index, account in ipairs(accounts) do
  local granted = grants[index]
  if granted >= 0 then
    if account.kind == 'l' then
      hold(account, holding, granted, now, lease)
    else
      account.used = account.used + granted
      write(account)
    end
  end
  tell(answer, account, granted)
end
return answer
