-- Corrects what was charged to an open reservation; nothing if it is not open.
--
-- KEYS: open reservations, what its step was granted, then the accounts' keys.
-- ARGV: call, what (`more`: it goes on; `end`: it ends; `undo`: one step of it, whose answer never came, is taken
-- back, or kept from happening), holding, now, lease in ms, number of accounts, then for each account: kind, amount,
-- period, units more (below zero: fewer; `undo`: as wanted), window (-1: any); then the holding's steps.
-- -> call, now, 1 or 0 (it was not open), then for each account: -1, used, credit, window.

local live, given = KEYS[1], KEYS[2]
local what, holding, now = ARGV[2], ARGV[3], clock(ARGV[4])
local lease, count = tonumber(ARGV[5]), tonumber(ARGV[6])
local first = 7 + 5 * count

local since, grants = 0, nil
for index = first, #ARGV do
  local step = ARGV[index]
  local at = began(live, step)
  since = math.max(since, at)
  if what == 'undo' and at <= 0 then
    redis.call('ZADD', live, whole(-max(1, now)), step)
  elseif what ~= 'more' and at > 0 then
    redis.call('ZREM', live, step)
  end
end
if since <= 0 then return {ARGV[1], now, 0} end
if what == 'undo' then grants = ask('GET', given) end
if what ~= 'more' then redis.call('DEL', given) end

local granted = {}
if grants then
  for number in string.gmatch(grants, '%S+') do granted[#granted + 1] = tonumber(number) end
end

local answer = {ARGV[1], now, 1}
for index, account in ipairs(accounts_at(now, count, 3, 7, 5)) do
  local at = 7 + (index - 1) * 5
  local delta, window = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if what == 'undo' then
    delta = -max(0, granted[index] or delta)
    window = (account.kind == 'd' or account.kind == 'm') and window_of(account.kind, since) or -1
  end
  if account.kind == 'l' then
    if what == 'end' then delta = nil end
    hold(account, holding, delta, now, lease)
  else
    if account.kind == 'r' then
      account.used = added(account.used, delta)
      if account.used == 0 then account.credit = 0 end
    elseif delta > 0 or window < 0 or window >= account.window then
      account.used = added(account.used, delta)
    end
    write(account)
  end
  tell(answer, account, -1)
end
return answer
