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

-- What is stored of a window (bucket, current, previous, and the end of a calendar window), brought to `now`.
-- `window` is a length in milliseconds, or a calendar window's name. A clock that went back (after a failover) leaves
-- the window where it was.
local function look(stored, window, now)
  local state = {bucket = -1, current = 0, previous = 0, found = stored and true, length = tonumber(window)}
  if stored then
    local bucket, current, previous, ends = string.match(stored, '^(%d+) (%d+) (%d+) (%d+)$')
    state.bucket, state.current, state.previous = tonumber(bucket), tonumber(current), tonumber(previous)
    state.ends = tonumber(ends)
    if now < state.ends and not state.length then
      return state
    end
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
  local stored = string.format('%s %.0f', text(state), state.ends)
  -- a minute more, for clocks that go back
  redis.call('SET', key, stored, 'PX', whole(math.max(0, state.ends - now) + 60000))
end

-- Adds `delta` to the bucket where the exchange was charged; nothing if that bucket is gone.
local function charge(key, window, bucket, delta, now)
  if delta == 0 then
    return
  end
  local state = look(redis.call('GET', key), window, now)
  if state.bucket == bucket then
    state.current = math.min(math.max(0, state.current + delta), MOST)
  elseif state.length and state.bucket == bucket + 1 then
    state.previous = math.min(math.max(0, state.previous + delta), MOST)
  else
    return
  end
  keep(key, state, now)
end

local function answer(verdict, now, states, buckets)
  local parts = {verdict, whole(now)}
  for i, state in ipairs(states) do
    parts[2 + i] = text(state)
  end
  parts[#parts + 1] = buckets
  return table.concat(parts, ' ')
end

-- Takes or keeps a slot, and lets go of those whose lease is over.
local function hold(key, id, lease, now)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
  redis.call('ZADD', key, whole(now + lease), id)
  redis.call('PEXPIRE', key, lease)
end
