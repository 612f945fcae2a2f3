-- Enter what the ledger says was used in calendar windows that are not stored. Of several who asked it, the first tells.
-- KEYS: windows. ARGV: nothing, of each window: calendar name, the start it was asked for, used.
local now = now_ms()
local stored = fetch(unpack(KEYS))
for i = 1, #KEYS do
  local state = look(stored[i], words[3 * i - 2], now)
  if not state.found and state.bucket == tonumber(words[3 * i - 1]) then
    state.current = tonumber(words[3 * i])
    state.recalled = now
    keep(KEYS[i], state, now)
  end
end
return 1
