-- Reserve in every window and hold a slot, or change nothing.
-- KEYS: the reservation's record, the key's slots, its windows.
-- ARGV: id, lease in ms, slots or -1, the record's life in ms, whether calendar windows are recalled from the ledger,
--       then of each window: length in ms or calendar name, amount, demand.
-- Answers a text: verdict, time, then bucket, current, previous of each window, then the buckets charged.
local recorded_state, recorded_buckets = recorded(KEYS[1])
if recorded_state == 'settled' then
  return 'over'
end
local now = now_ms()
local states = look_at_all(5, 3, now)
if recorded_state then
  -- the answer to this very reservation was lost, and it is asked for again
  return answer('granted', now, states, recorded_buckets)
end
local verdict = 'granted'
for i, state in ipairs(states) do
  if not state.length and not state.found and words[4] == '1' then
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
-- first, because this may fail: a script that fails is not undone
hold(KEYS[2], ARGV[1], words[1], now)
local charged = {}
for i, state in ipairs(states) do
  state.current = state.current + tonumber(words[4 + 3 * i])
  keep(KEYS[2 + i], state, now)
  charged[i] = whole(state.bucket)
end
local buckets = table.concat(charged, ' ')
record(KEYS[1], 'open', buckets, words[3])
return answer(verdict, now, states, buckets)
