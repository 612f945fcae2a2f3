-- Replace what was reserved by what was used and free the slot: once, however often it is asked for.
-- KEYS: the reservation's record, the key's slots, its windows.
-- ARGV: id, how long to remember that it is settled in ms, whether it is so late that this may be forgotten,
--       then of each window: length in ms or calendar name, reserved, used, the bucket charged or -1 if unknown.
local record = redis.call('GET', KEYS[1])
if record == 'settled' then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
if not record and words[2] == '1' then
  return 0
end
redis.call('SET', KEYS[1], 'settled', 'PX', words[1])
local now = now_ms()
local buckets = {}
for word in string.gmatch(record or '', '%d+') do
  buckets[#buckets + 1] = tonumber(word)
end
for i = 1, #KEYS - 2 do
  local at = 4 * i - 1
  local reserved = tonumber(words[at + 1])
  if not record then
    -- the store was emptied since: what it knows holds nothing of this exchange
    reserved = 0
  end
  charge(KEYS[2 + i], words[at], buckets[i] or tonumber(words[at + 3]), tonumber(words[at + 2]) - reserved, now)
end
return 1
