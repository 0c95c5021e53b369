-- What all scripts begin with: accounts, read and written. The formulas are those of limits/arithmetic.py, step
-- by step, so that this store and the one in memory decide alike. Numbers are doubles: all stay below 2^53.
--
-- ARGV[1] names the call; it is the first thing of every answer, so that an answer that reaches somebody else
-- is known for what it is. An account is described by three arguments: its kind (r a rate, d a budget of a day,
-- m of a month, l a level), the limit's amount, and the period in ms (0 but for rates). It has one key; a level
-- has two: who holds until when (a sorted set), and how much (a hash, with the sum under '=').

local MOST = 9007199254740991
local DAY = 86400000
local LONGEST = 1e15  -- ms: more than this Redis does not take
local SLACK = 60000  -- ms for which an account is kept although nothing of it is used

local floor, max = math.floor, math.max

local function whole(number)
  return string.format('%.0f', number)
end

-- A key that is not of the type that it must be counts as one that is not there: 'wrong' as second result.
local function ask(command, key, ...)
  local value = redis.pcall(command, key, ...)
  if type(value) == 'table' and value.err then
    if string.find(value.err, 'WRONGTYPE', 1, true) then return nil, 'wrong' end
    error(value.err, 0)
  end
  return value
end

-- Milliseconds by the server's clock, or as told (by tests).
local function clock(told)
  if told ~= '' then return tonumber(told) end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + floor(tonumber(time[2]) / 1000)
end

local function added(used, delta)
  used = used + delta
  if used < 0 then return 0 end
  if used > MOST then return MOST end
  return used
end

local function drained(used, credit, elapsed, amount, period)
  if used <= 0 then return 0, 0 end
  local full = floor(elapsed / period)
  local rest = elapsed - full * period
  if full > floor(used / amount) then return 0, 0 end
  local times = floor(amount / period)
  local x = (amount - times * period) * rest + credit
  local whole_units = floor(x / period)
  used = used - full * amount
  used = used - times * rest
  used = used - whole_units
  if used <= 0 then return 0, 0 end
  return used, x - whole_units * period
end

local function window_of(kind, now)
  local days = floor(now / DAY)
  if kind == 'd' then return days end
  local era = floor((days + 719468) / 146097)
  local of_era = days + 719468 - era * 146097
  local year_of_era =
    floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
  local shifted = floor((5 * of_year + 2) / 153)
  local month = shifted < 10 and shifted + 3 or shifted - 9
  local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
  return (year - 1970) * 12 + month - 1
end

-- The numbers of a value that was written here; nil if anything else is there.
local function numbers(value, pattern)
  if type(value) ~= 'string' then return nil end
  local a, b, c = string.match(value, pattern)
  a, b, c = tonumber(a), tonumber(b or 0), tonumber(c or 0)
  if not a or a > MOST or b > MOST or c > MOST then return nil end
  return a, b, c
end

local function rate_at(account, now)
  local used, credit, seen = numbers(ask('GET', account.key), '^r (%d+) (%d+) (%d+)$')
  if not used then used, credit, seen = 0, 0, now end
  local amount, period = account.amount, account.period
  if now > seen then
    used, credit = drained(used, credit, now - seen, amount, period)
    seen = now
  elseif used == 0 or seen - now > period then
    seen = now  -- the clock was set back: nothing drains for that, but from here on it does again
  end
  account.used, account.credit, account.seen = used, credit, seen
end

local function budget_at(account, now)
  local used, window = numbers(ask('GET', account.key), '^b (%d+) (%d+)$')
  local current = window_of(account.kind, now)
  if not used or used == 0 or current > window then used, window = 0, current end
  account.used, account.window = used, window
end

local function level_at(account, now)
  local expired, wrong = ask('ZRANGEBYSCORE', account.key, '-inf', whole(now))
  local sum, wrong_too = ask('HGET', account.held, '=')
  sum = numbers(sum or '0', '^(%d+)$')
  account.expired = {}
  if wrong or wrong_too or not sum then
    account.broken, account.used = true, 0
    return
  end
  for _, holder in ipairs(expired) do
    local units = numbers(redis.call('HGET', account.held, holder), '^(%d+)$')
    account.expired[holder] = true
    sum = max(0, sum - (units or 0))
  end
  account.used = sum
end

-- Reads `count` accounts: keys from KEYS[key] on, descriptions from ARGV[argument] on, every `width` arguments.
local function accounts_at(now, count, key, argument, width)
  local accounts, known = {}, {}
  for index = 1, count do
    local at = argument + (index - 1) * width
    local name, kind = KEYS[key], ARGV[at]
    key = key + (kind == 'l' and 2 or 1)
    local account = known[name]
    if not account then
      account = {
        key = name, kind = kind, amount = tonumber(ARGV[at + 1]), period = tonumber(ARGV[at + 2]),
        credit = 0, window = -1,
      }
      if kind == 'r' then
        rate_at(account, now)
      elseif kind == 'l' then
        account.held = KEYS[key - 1]
        level_at(account, now)
      else
        budget_at(account, now)
      end
      known[name] = account
    end
    accounts[index] = account
  end
  return accounts
end

-- Rates and budgets.
local function write(account)
  if account.kind == 'r' then
    local empty_in = math.min(account.used / account.amount * account.period, LONGEST)
    local value = 'r ' .. whole(account.used) .. ' ' .. whole(account.credit) .. ' ' .. whole(account.seen)
    redis.call('SET', account.key, value, 'PX', whole(math.ceil(empty_in) + SLACK))
  else
    local value = 'b ' .. whole(account.used) .. ' ' .. whole(account.window)
    redis.call('SET', account.key, value, 'PX', whole((account.kind == 'd' and 2 or 33) * DAY))
  end
end

local function mend(level)
  if level.broken then
    redis.call('DEL', level.key, level.held)
    level.broken = nil
  end
end

-- Lets `holder` have so many units more, or fewer, of a level; without a `delta` it gives back all.
local function hold(account, holder, delta, now, lease)
  local ends, held = account.key, account.held
  mend(account)
  for gone in pairs(account.expired) do
    redis.call('ZREM', ends, gone)
    redis.call('HDEL', held, gone)
  end
  account.expired = {}
  local before = numbers(redis.call('HGET', held, holder), '^(%d+)$') or 0
  local after = delta and added(before, delta) or 0
  account.used = max(0, account.used + (after - before))  -- what is in brackets first: else it passes 2^53
  if after > 0 then
    redis.call('ZADD', ends, whole(now + lease), holder)
    redis.call('HSET', held, holder, whole(after))
  else
    redis.call('ZREM', ends, holder)
    redis.call('HDEL', held, holder)
  end
  if redis.call('ZCARD', ends) == 0 then
    account.used = 0
    redis.call('DEL', held)
  else
    redis.call('HSET', held, '=', whole(account.used))
    redis.call('PEXPIRE', ends, whole(2 * lease))
    redis.call('PEXPIRE', held, whole(2 * lease))
  end
end

-- Which reservations are open: a sorted set, by when they began, in ms. Below zero: it may no longer begin.
local function began(live, id)
  local score, wrong = ask('ZSCORE', live, id)
  if wrong then redis.call('DEL', live) end
  return tonumber(score or 0)
end

local function tell(answer, account, granted)
  local size = #answer
  answer[size + 1] = granted
  answer[size + 2] = account.used
  answer[size + 3] = account.credit
  answer[size + 4] = account.window
end
