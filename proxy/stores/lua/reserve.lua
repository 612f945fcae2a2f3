-- Reserve in every window and hold a slot, or change nothing.
-- KEYS: the reservation's record, the key's slots, its windows.
-- ARGV: id, lease in ms, slots or -1, the record's life in ms, whether calendar windows may begin empty,
--       then of each window: length in ms or calendar name, amount, demand.
-- Answers a text: verdict, time, then bucket, current, previous of each window, then the buckets charged.
local record = redis.call('GET', KEYS[1])
if record == 'settled' then
  return 'over'
end
local now = now_ms()
local count = #KEYS - 2
local states = {}
if count > 0 then
  local stored = redis.call('MGET', unpack(KEYS, 3))
  for i = 1, count do
    states[i] = look(stored[i], words[2 + 3 * i], now)
  end
end
if record then
  -- the answer to this very reservation was lost, and it is asked for again
  return answer('granted', now, states, record)
end
local verdict = 'granted'
for i, state in ipairs(states) do
  if not state.length and not state.found and words[4] == '0' then
    return answer('missing', now, states)
  end
  if used(state, now) + tonumber(words[4 + 3 * i]) > tonumber(words[3 + 3 * i]) then
    verdict = 'window'
  end
end
local slots = tonumber(words[2])
if verdict == 'granted' and slots >= 0 then
  if redis.call('ZCOUNT', KEYS[2], '(' .. whole(now), '+inf') >= slots then
    verdict = 'slots'
  end
end
if verdict ~= 'granted' then
  return answer(verdict, now, states)
end
local buckets = {}
for i, state in ipairs(states) do
  state.current = state.current + tonumber(words[4 + 3 * i])
  keep(KEYS[2 + i], state, now)
  buckets[i] = whole(state.bucket)
end
hold(KEYS[2], ARGV[1], words[1], now)
record = table.concat(buckets, ' ')
redis.call('SET', KEYS[1], record, 'PX', words[3])
return answer(verdict, now, states, record)
