-- Replace what was reserved by what was used and free the slot: once, however often it is asked for.
-- KEYS: the reservation's record, the key's slots, its windows.
-- ARGV: id, how long to remember that it is settled in ms, how long ago the exchange ended in ms, whether calendar
--       windows are recalled from the ledger, then of each window: length in ms or calendar name, reserved, used, the
--       bucket charged or -1 if unknown.
local state, buckets = recorded(KEYS[1])
if state == 'settled' then
  return 0
end
let_go(KEYS[2], ARGV[1])
local age = tonumber(words[2])
if not state and age > words[1] / 2 then
  -- it may have been settled, and that forgotten
  return 0
end
record(KEYS[1], 'settled', '', words[1])
local charged = {}
for word in string.gmatch(buckets or '', '%d+') do
  charged[#charged + 1] = tonumber(word)
end
local now = now_ms()
for i, window in ipairs(look_at_all(4, 4, now)) do
  local at = 4 * i
  local reserved, used_in_the_end = tonumber(words[at + 1]), tonumber(words[at + 2])
  local is_of_ledger = not window.length and words[3] == '1'
  if not state and not is_of_ledger then
    -- the store was emptied since: what it knows holds nothing of this exchange
    reserved = 0
  end
  -- The ledger counts what an exchange reserved until it has ended, and then what it used. A recall after the end, and
  -- one that is yet to come, need no correction.
  if not is_of_ledger or window.found and window.recalled <= now - age then
    charge(KEYS[2 + i], window, charged[i] or tonumber(words[at + 3]), used_in_the_end - reserved, now)
  end
end
return 1
