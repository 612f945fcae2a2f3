-- Enter what the ledger says was used in calendar windows of which the store knows less.
-- KEYS: windows. ARGV: nothing, of each window: calendar name, the start it was asked for, used.
local now = now_ms()
for i = 1, #KEYS do
  local state = look(redis.call('GET', KEYS[i]), words[3 * i - 2], now)
  if state.bucket == tonumber(words[3 * i - 1]) then
    state.current = math.max(state.current, tonumber(words[3 * i]))
    keep(KEYS[i], state, now)
  end
end
return 1
