-- Windows as core/quota.py has them: the arithmetic of every script. Numbers are doubles: amounts up to 10^15, and times
-- in milliseconds, are exact.

local DAY_S = 86400
local MOST = 1e15 -- core/quota.py MAX_AMOUNT

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- ARGV[2] holds what would be arguments of their own: clients take a microsecond for each.
local words = {}
for word in string.gmatch(ARGV[2] or '', '[^ ]+') do
  words[#words + 1] = word
end

local function whole(number)
  return string.format('%.0f', number)
end

-- Days since 1970 of the first of a month; months count from 0 and may overflow into the next year.
-- http://howardhinnant.github.io/date_algorithms.html, days_from_civil
local function first_of_month(year, month)
  local years = year + math.floor(month / 12) - (month % 12 < 2 and 1 or 0)
  local day_of_year = math.floor((153 * ((month + 10) % 12) + 2) / 5)
  return years * 365 + math.floor(years / 4) - math.floor(years / 100) + math.floor(years / 400) + day_of_year - 719468
end

-- Where the calendar window around `now` begins, in UTC, as UNIX time in seconds; and its end in milliseconds.
local function calendar(window, now)
  local day = math.floor(now / 1000 / DAY_S)
  if window == 'day' then
    return day * DAY_S, (day + 1) * DAY_S * 1000
  end
  local year = 1970 + math.floor(day / 365.2425)
  if first_of_month(year, 0) > day then
    year = year - 1
  elseif first_of_month(year + 1, 0) <= day then
    year = year + 1
  end
  if window == 'year' then
    return first_of_month(year, 0) * DAY_S, first_of_month(year + 1, 0) * DAY_S * 1000
  end
  local month = 0
  while first_of_month(year, month + 1) <= day do
    month = month + 1
  end
  return first_of_month(year, month) * DAY_S, first_of_month(year, month + 1) * DAY_S * 1000
end

-- Stored texts. MGET, unlike GET, takes what is no text for nothing stored.
local function fetch(...)
  return redis.call('MGET', ...)
end

-- What is stored of a window: bucket, current, previous, the end of a calendar window, and when that was recalled from
-- the ledger, 0 if never. What no script has written is nothing stored.
local function parse(stored)
  local numbers = {string.match(stored or '', '^(%d+) (%d+) (%d+) (%d+) (%d+)$')}
  for i = 1, #numbers do
    numbers[i] = tonumber(numbers[i])
    if numbers[i] > 9 * MOST then
      return nil
    end
  end
  local bucket, current, previous, ends, recalled = unpack(numbers)
  if bucket then
    return {bucket = bucket, current = current, previous = previous, ends = ends, recalled = recalled, found = true}
  end
end

-- The window brought to `now`. `window` is a length in milliseconds, or a calendar window's name. A clock that went
-- back (after a failover) leaves the window where it was.
local function look(stored, window, now)
  local state = parse(stored) or {bucket = -1, current = 0, previous = 0, recalled = 0, found = false}
  state.length = tonumber(window)
  if state.found and now < state.ends and not state.length then
    return state
  end
  local bucket, ends
  if state.length then
    bucket = math.floor(now / state.length)
    ends = (bucket + 2) * state.length
  else
    bucket, ends = calendar(window, now)
  end
  if state.bucket < bucket then
    state.previous = state.length and state.bucket == bucket - 1 and state.current or 0
    state.current = 0
    state.recalled = 0
    state.bucket = bucket
    state.ends = ends
  end
  return state
end

-- What counts as used: what is left of the previous bucket, rounded up, and the current one.
-- The product is split, because it may be larger than a double holds exactly.
local function used(state, now)
  if not state.length or state.previous == 0 then
    return state.current
  end
  local length = state.length
  local left = length - math.max(0, now - state.bucket * length)
  local quotient = math.floor(state.previous / length)
  return quotient * left + math.ceil((state.previous - quotient * length) * left / length) + state.current
end

local function text(state)
  return string.format('%.0f %.0f %.0f', state.bucket, state.current, state.previous)
end

local function keep(key, state, now)
  local stored = string.format('%s %.0f %.0f', text(state), state.ends, state.recalled)
  -- a minute more, for clocks that go back
  redis.call('SET', key, stored, 'PX', whole(math.max(0, state.ends - now) + 60000))
end

-- Adds `delta` to the bucket where the exchange was charged; nothing if that bucket is gone.
local function charge(key, state, bucket, delta, now)
  if delta == 0 then
    return
  end
  if state.bucket == bucket then
    state.current = math.min(math.max(0, state.current + delta), MOST)
  elseif state.length and state.bucket == bucket + 1 then
    state.previous = math.min(math.max(0, state.previous + delta), MOST)
  else
    return
  end
  keep(key, state, now)
end

-- All windows of an exchange, brought to `now`. Of the first one, `words[first]` is the length or name; and so on.
local function look_at_all(first, step, now)
  local states = {}
  if #KEYS > 2 then
    local stored = fetch(unpack(KEYS, 3))
    for i = 1, #KEYS - 2 do
      states[i] = look(stored[i], words[first + step * (i - 1)], now)
    end
  end
  return states
end

-- What is recorded of an exchange: 'open', 'released' (its slot is free) or 'settled', and the buckets charged.
local function recorded(key)
  local state, buckets = string.match(fetch(key)[1] or '', '^(%l+) ?([%d ]*)$')
  if state == 'open' or state == 'released' or state == 'settled' then
    return state, buckets
  end
end

local function record(key, state, buckets, life)
  redis.call('SET', key, state .. ' ' .. buckets, 'PX', life)
end

-- Enters a reservation of which the store has lost the record; the buckets charged. Not in calendar windows that are
-- recalled: for the ledger, an exchange in flight has used what it reserved.
-- `words[3]` tells whether they are; then come of each window: length in ms or calendar name, reserved, bucket.
local function enter_again(now)
  local buckets = {}
  for i, state in ipairs(look_at_all(4, 3, now)) do
    local at = 3 * i + 1
    if state.length or words[3] == '0' then
      charge(KEYS[2 + i], state, tonumber(words[at + 2]), tonumber(words[at + 1]), now)
    end
    buckets[i] = words[at + 2]
  end
  return table.concat(buckets, ' ')
end

local function answer(verdict, now, states, buckets)
  local parts = {verdict, whole(now)}
  for i, state in ipairs(states) do
    parts[2 + i] = text(state)
  end
  parts[#parts + 1] = buckets
  return table.concat(parts, ' ')
end

-- Takes or keeps a slot, and lets go of those whose lease is over. In this order: a script's first write is where a
-- Redis that is full refuses it.
local function hold(key, id, lease, now)
  redis.call('ZADD', key, whole(now + lease), id)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
  redis.call('PEXPIRE', key, lease)
end

-- A slot that is no set of slots holds nothing.
local function let_go(key, id)
  redis.pcall('ZREM', key, id)
end
