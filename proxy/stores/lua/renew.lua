-- Keep an exchange's slot for another lease; enter its reservation again if the store was emptied since.
-- KEYS: the reservation's record, the key's slots, its windows.
-- ARGV: id, lease in ms, the record's life in ms, then of each window: length in ms or calendar name,
--       reserved, the bucket charged.
local record = redis.call('GET', KEYS[1])
if record == 'settled' then
  return 0
end
local now = now_ms()
if not record then
  local buckets = {}
  for i = 1, #KEYS - 2 do
    local at = 3 * i
    charge(KEYS[2 + i], words[at], tonumber(words[at + 2]), tonumber(words[at + 1]), now)
    buckets[i] = words[at + 2]
  end
  record = table.concat(buckets, ' ')
end
redis.call('SET', KEYS[1], record, 'PX', words[2])
hold(KEYS[2], ARGV[1], words[1], now)
return 1
