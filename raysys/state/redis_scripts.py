"""The Lua scripts of the Redis store. Redis runs each of them alone and whole: nothing reads or writes in between.

A script that fails is not undone, so the first write of each is one that Redis refuses when it is full or read-only
(``INCR``, ``HSET``): what lets that one pass lets the rest pass too.

Keys, all of them after ``raysys:``, those of a tenant after ``raysys@TENANT:``. That prefix is given to each script as
its only key, so a user of Redis who may touch no more than ``~raysys@TENANT:*`` runs them all.

    sequence          the highest sequence given
    identity          names the data
    versions          hash   user -> version
    people            hash   user -> person
    links             hash   session -> user
    erased            hash   user -> epoch seconds
    owners            hash   event id -> user; an event id that is not here is new
    log               zset   event id by sequence
    expiry            zset   event id by expires_s, of those that expire
    items             hash   item id -> created_s, changed_s, 'gone' or 'here', the record, with a blank between each
    changes           zset   item id by the sequence of its latest change
    vectors           hash   text key -> float32 bytes
    times:<user>      zset   event id by timestamp; Redis orders equal ones by the bytes of the id
    events:<user>     hash   event id -> record
    sessions:<user>   set    the sessions linked to this user
"""

from raysys.config import check_tenant
from raysys.errors import ConfigError

SEQUENCE, IDENTITY, ERASED, VECTORS = "sequence", "identity", "erased", "vectors"


def prefix(tenant: str | None) -> str:
    """What all keys of a tenant begin with, and no keys of anybody else. Raises ConfigError for what names none."""
    try:
        return "raysys:" if tenant is None else f"raysys@{check_tenant(tenant)}:"
    except ValueError as error:
        # Not shown: what stands there may be a part of a password in which '#' is not written as %23.
        raise ConfigError(f"what stands after '#' of the Redis URL {error}") from None


_KEYS = """
local call = redis.call
local P = KEYS[1]
local SEQUENCE, VERSIONS, PEOPLE, LINKS = P .. 'sequence', P .. 'versions', P .. 'people', P .. 'links'
local ERASED, OWNERS, LOG, EXPIRY = P .. 'erased', P .. 'owners', P .. 'log', P .. 'expiry'
local ITEMS, CHANGES, VECTORS = P .. 'items', P .. 'changes', P .. 'vectors'
local function times(user) return P .. 'times:' .. user end
local function events(user) return P .. 'events:' .. user end
local function sessions(user) return P .. 'sessions:' .. user end
local function resolve(user) return call('HGET', LINKS, user) or user end
local function version(user) return call('HGET', VERSIONS, user) or '0' end
local function touch(user)
  local sequence = call('INCR', SEQUENCE)
  call('HSET', VERSIONS, user, sequence)
  return sequence
end
local function drop(user, id)
  call('HDEL', OWNERS, id)
  call('ZREM', LOG, id)
  call('ZREM', EXPIRY, id)
  call('ZREM', times(user), id)
  call('HDEL', events(user), id)
end
"""

# ARGV: id, user, timestamp, expires_s or '', record of each event. Returns 1 = accepted, 0 = duplicate of each.
APPEND = (
    _KEYS
    + """
local outcomes = {}
for i = 1, #ARGV, 5 do
  local id, user = ARGV[i], resolve(ARGV[i + 1])
  local new = call('HEXISTS', OWNERS, id) == 0
  if new then
    call('ZADD', LOG, touch(user), id)
    call('HSET', OWNERS, id, user)
    call('ZADD', times(user), ARGV[i + 2], id)
    call('HSET', events(user), id, ARGV[i + 4])
    if ARGV[i + 3] ~= '' then call('ZADD', EXPIRY, ARGV[i + 3], id) end
  end
  outcomes[#outcomes + 1] = new and 1 or 0
end
return outcomes
"""
)

# User, version, person or false, records. Lua can pass some 8,000 values to one call.
_HISTORY = """
local function history(user, current, limit)
  local records = {}
  if limit > 0 then
    local ids = call('ZREVRANGE', times(user), 0, limit - 1)
    for first = 1, #ids, 5000 do
      local last = math.min(first + 4999, #ids)
      for _, record in ipairs(call('HMGET', events(user), unpack(ids, first, last))) do
        records[#records + 1] = record
      end
    end
  end
  return {user, current, call('HGET', PEOPLE, user), records}
end
"""

# ARGV: user, limit, known version. Returns nil where it is that one, else user, version, person or nil, records.
HISTORY = (
    _KEYS
    + _HISTORY
    + """
local user = resolve(ARGV[1])
local current = version(user)
if current == ARGV[3] then return false end
return history(user, current, tonumber(ARGV[2]))
"""
)

# ARGV: limit, then users. Returns user, version, person or nil, records of each.
HISTORIES = (
    _KEYS
    + _HISTORY
    + """
local found = {}
for i = 2, #ARGV do
  local user = resolve(ARGV[i])
  found[#found + 1] = history(user, version(user), tonumber(ARGV[1]))
end
return found
"""
)

# ARGV: users. Returns the version of each.
VERSIONS = (
    _KEYS
    + """
local found = {}
for i, user in ipairs(ARGV) do found[i] = version(resolve(user)) end
return found
"""
)

# ARGV: user, record. Returns the version.
PUT_PERSON = (
    _KEYS
    + """
local user = resolve(ARGV[1])
local sequence = touch(user)
call('HSET', PEOPLE, user, ARGV[2])
return sequence
"""
)

# ARGV: session, user. Returns what happened and the version of the user.
LINK = (
    _KEYS
    + """
local session, user = ARGV[1], ARGV[2]
local owner = call('HGET', LINKS, session)
if owner then return {owner == user and 'already' or 'conflict', version(user)} end
local sequence = touch(user)
call('HSET', LINKS, session, user)
call('SADD', sessions(user), session)
local scored = call('ZRANGE', times(session), 0, -1, 'WITHSCORES')
for i = 1, #scored, 2 do
  local id = scored[i]
  call('ZADD', times(user), scored[i + 1], id)
  call('HSET', events(user), id, call('HGET', events(session), id))
  call('HSET', OWNERS, id, user)
end
local person = call('HGET', PEOPLE, session)
if person then call('HSETNX', PEOPLE, user, person) end
call('HDEL', PEOPLE, session)
call('HDEL', VERSIONS, session)
call('DEL', times(session), events(session))
return {'merged', sequence}
"""
)

# ARGV: user. Returns the sessions, in any order.
SESSIONS = (
    _KEYS
    + """
return call('SMEMBERS', sessions(resolve(ARGV[1])))
"""
)

# ARGV: user, how many event ids, the event ids, text keys. Returns how many events went.
FORGET = (
    _KEYS
    + """
local user, last, gone = resolve(ARGV[1]), 2 + tonumber(ARGV[2]), 0
for i = 3, last do
  if call('HGET', OWNERS, ARGV[i]) == user then
    if gone == 0 then touch(user) end
    drop(user, ARGV[i])
    gone = gone + 1
  end
end
for i = last + 1, #ARGV do call('HDEL', VECTORS, ARGV[i]) end
return gone
"""
)

# ARGV: user, epoch seconds, text keys. Returns how many events, people, links and vectors went.
ERASE = (
    _KEYS
    + """
local user = resolve(ARGV[1])
local ids, linked = call('ZRANGE', times(user), 0, -1), call('SMEMBERS', sessions(user))
if call('HEXISTS', VERSIONS, user) == 1 then
  call('HSET', ERASED, user, ARGV[2])
  for _, session in ipairs(linked) do call('HSET', ERASED, session, ARGV[2]) end
else
  call('HSETNX', ERASED, user, ARGV[2])  -- a stranger here, whose past may stand in the event files of a build
end
for _, session in ipairs(linked) do call('HDEL', LINKS, session) end
for _, id in ipairs(ids) do drop(user, id) end
call('DEL', times(user), events(user), sessions(user))
call('HDEL', VERSIONS, user)
local vectors = 0
for i = 3, #ARGV do vectors = vectors + call('HDEL', VECTORS, ARGV[i]) end
return {#ids, call('HDEL', PEOPLE, user), #linked, vectors}
"""
)

# ARGV: epoch seconds, limit. Returns how many events went.
EXPIRE = (
    _KEYS
    + """
local ids, touched = call('ZRANGEBYSCORE', EXPIRY, '-inf', ARGV[1], 'LIMIT', 0, ARGV[2]), {}
for _, id in ipairs(ids) do
  local user = call('HGET', OWNERS, id)
  if not touched[user] then touched[user] = touch(user) end
  drop(user, id)
end
return #ids
"""
)

# ARGV: sequence, limit. Returns sequence, user, record of each event.
EVENTS_AFTER = (
    _KEYS
    + """
local found = {}
local scored = call('ZRANGEBYSCORE', LOG, '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #scored, 2 do
  local user = call('HGET', OWNERS, scored[i])
  found[#found + 1] = {scored[i + 1], user, call('HGET', events(user), scored[i])}
end
return found
"""
)

# ARGV: epoch seconds, then item id, expected sequence or '', 'gone' or 'here' and record of each draft.
# Returns sequence, item id, value of ``items`` of each, nil where the latest sequence is not the expected one.
CHANGE_ITEMS = (
    _KEYS
    + """
local now, changes = ARGV[1], {}
for i = 2, #ARGV, 4 do
  local id, expected = ARGV[i], ARGV[i + 1]
  local change = false
  if expected == '' or tonumber(expected) == tonumber(call('ZSCORE', CHANGES, id) or 0) then
    local sequence = call('INCR', SEQUENCE)
    local kept = call('HGET', ITEMS, id)
    local created = kept and string.match(kept, '^%S+') or now
    local value = table.concat({created, now, ARGV[i + 2], ARGV[i + 3]}, ' ')
    call('HSET', ITEMS, id, value)
    call('ZADD', CHANGES, sequence, id)
    change = {sequence, id, value}
  end
  changes[#changes + 1] = change
end
return changes
"""
)

# ARGV: sequence, limit. Returns sequence, item id, value of ``items`` of each.
ITEM_CHANGES = (
    _KEYS
    + """
local found = {}
local scored = call('ZRANGEBYSCORE', CHANGES, '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #scored, 2 do found[#found + 1] = {scored[i + 1], scored[i], call('HGET', ITEMS, scored[i])} end
return found
"""
)

# ARGV: item ids. Returns sequence, item id, value of ``items`` of each that is there.
GET_ITEMS = (
    _KEYS
    + """
local found = {}
for _, id in ipairs(ARGV) do
  local sequence = call('ZSCORE', CHANGES, id)
  if sequence then found[#found + 1] = {sequence, id, call('HGET', ITEMS, id)} end
end
return found
"""
)

# ARGV: how many vectors, then text key and bytes of each, then item ids. Those that are there are written anew.
PUT_VECTORS = (
    _KEYS
    + """
local last = 1 + 2 * tonumber(ARGV[1])
for i = 2, last, 2 do call('HSET', VECTORS, ARGV[i], ARGV[i + 1]) end
for i = last + 1, #ARGV do
  local value = call('HGET', ITEMS, ARGV[i])
  if value and string.match(value, '^%S+ %S+ here ') then call('ZADD', CHANGES, call('INCR', SEQUENCE), ARGV[i]) end
end
"""
)

# Returns how many events, people, items and vectors there are.
SIZE = (
    _KEYS
    + """
return {call('HLEN', OWNERS), call('HLEN', VERSIONS), call('HLEN', ITEMS), call('HLEN', VECTORS)}
"""
)

ALL = (
    APPEND,
    HISTORY,
    HISTORIES,
    VERSIONS,
    PUT_PERSON,
    LINK,
    SESSIONS,
    FORGET,
    ERASE,
    EXPIRE,
    EVENTS_AFTER,
    CHANGE_ITEMS,
    ITEM_CHANGES,
    GET_ITEMS,
    PUT_VECTORS,
    SIZE,
)
