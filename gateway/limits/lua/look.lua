-- How accounts stand. Writes nothing.
--
-- KEYS: the accounts' keys. ARGV: call, now, number of accounts, then for each: kind, amount, period.
-- -> call, now, 1, then for each account: -1, used, credit, window.

local now = clock(ARGV[2])
local answer = {ARGV[1], now, 1}
for _, account in ipairs(accounts_at(now, tonumber(ARGV[3]), 1, 4, 3)) do tell(answer, account, -1) end
return answer
