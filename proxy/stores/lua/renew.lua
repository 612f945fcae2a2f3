-- Keep an exchange's slot for another lease, unless it was released; keep the exchange's record in any case.
-- KEYS: the reservation's record, the key's slots, its windows.
-- ARGV: id, lease in ms, the record's life in ms, then what `enter_again` wants.
local now = now_ms()
local state, buckets = recorded(KEYS[1])
if state == 'settled' then
  return 0
end
if state ~= 'released' then
  hold(KEYS[2], ARGV[1], words[1], now)
end
record(KEYS[1], state or 'open', buckets or enter_again(now), words[2])
return 1
