-- Free the slot of an exchange that is still to be settled. KEYS and ARGV are those of renew.lua.
local state, buckets = recorded(KEYS[1])
if state == 'settled' then
  return 0
end
let_go(KEYS[2], ARGV[1])
record(KEYS[1], 'released', buckets or enter_again(now_ms()), words[2])
return 1
