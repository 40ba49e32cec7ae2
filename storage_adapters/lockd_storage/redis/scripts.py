"""The Lua that runs inside the server. Check and write are one step there.

Tokens are never made numbers: 2**53 + 1 would equal 2**53. They have no leading zeros, so of two the
longer is the larger, and of equally long ones the later in the order of text.
"""

import hashlib
from dataclasses import dataclass, field

from lockd_storage.errors import NotFenceable


@dataclass(frozen=True)
class Script:
    """A script and the hash by which the server knows it."""

    source: bytes
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        # The server names scripts by their SHA-1; it protects nothing.
        digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest.encode())


# The mark is the last key and the fence the last argument, so that the others keep their numbers.
# On one line, so that the line numbers in errors of a user's own script are right.
_CHECK = (
    "local lockd_mark = redis.call('HGET', KEYS[#KEYS], 'fence') "
    "if lockd_mark ~= ARGV[#ARGV] then "
    "return redis.error_reply(lockd_mark and ('LFMARK ' .. lockd_mark) or 'LFMISSING no token is installed') "
    "end "
)

_ABOVE = """
local function above(a, b)
  return #a > #b or (#a == #b and a > b)
end
"""

INSTALL = Script(
    f"""{_ABOVE}
-- KEYS: mark, floor. ARGV: lock, cluster, incarnation, token. Returns whether the mark is now ours, and
-- what stood there before: lock, fence, floor, the floor's cluster.
local before = redis.call('HMGET', KEYS[1], 'lock', 'fence')
local floor = redis.call('HMGET', KEYS[2], 'token', 'cluster')
local lock, cluster, token = ARGV[1], ARGV[2], ARGV[4]
local fence = cluster .. '/' .. ARGV[3] .. '/' .. token
local ours = not floor[2] or floor[2] == cluster
if before[2] then
  local its_cluster, its_token = string.match(before[2], '^(.-)/.-/(.-)$')
  ours = ours and before[1] == lock and its_cluster == cluster
    and (before[2] == fence or (above(token, its_token) and above(token, floor[1] or '0')))
else
  ours = ours and above(token, floor[1] or '0')
end
if ours then
  -- Also when nothing changes: WAIT counts who has this connection's last write (SAFETY S7).
  redis.call('HSET', KEYS[1], 'lock', lock, 'fence', fence, 'at', redis.call('TIME')[1])
  redis.call('PERSIST', KEYS[1])
end
return {{ours and 1 or 0, before[1], before[2], floor[1], floor[2]}}
""".encode()
)

# KEYS: the command's key, mark. ARGV: command, its arguments after the key, fence.
ONE_KEY = Script(f"{_CHECK}return redis.pcall(ARGV[1], KEYS[1], unpack(ARGV, 2, #ARGV - 1))".encode())

# KEYS: the command's keys, mark. ARGV: command, fence.
ALL_KEYS = Script(f"{_CHECK}return redis.pcall(ARGV[1], unpack(KEYS, 1, #KEYS - 1))".encode())

# ARGV: how many needs; key number and type for each of them; then for each command how many
# arguments follow its key, its name, key number and arguments; then the fence. Redis takes nothing back
# of a script that fails half-way, so all that can be known is asked before the first command.
BATCH = Script(
    f"""{_CHECK}
local last = #ARGV - 1
local at = 2
for _ = 1, ARGV[1] do
  local key, need = KEYS[ARGV[at] + 0], ARGV[at + 1]
  local kind = redis.call('TYPE', key)['ok']
  local wanted = need == 'counter' and 'string' or need
  if kind ~= 'none' and kind ~= wanted then
    return redis.error_reply('WRONGTYPE nothing was written: ' .. key .. ' is a ' .. kind .. ' and not a ' ..
      wanted)
  end
  if need == 'counter' and kind == 'string' then
    local value = redis.call('GET', key)
    if #value > 17 or (value ~= '0' and not string.match(value, '^%-?[1-9]%d*$')) then
      return redis.error_reply('ERR nothing was written: ' .. key .. ' is not a number of at most 17 digits')
    end
  end
  at = at + 2
end
local first = at
local commands = {{}}
while at <= last do
  local count = ARGV[at] + 0
  local command = {{ARGV[at + 1], KEYS[ARGV[at + 2] + 0], unpack(ARGV, at + 3, at + 2 + count)}}
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(command)) then
    return redis.error_reply('NOPERM nothing was written: no permission for ' .. command[1] .. ' on ' ..
      command[2])
  end
  commands[#commands + 1] = command
  at = at + 3 + count
end
local replies = {{}}
for number, command in ipairs(commands) do
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply['err'] then
    if number == 1 then return reply end
    return redis.error_reply('LFPARTLY ' .. number .. ' ' .. reply['err'])
  end
  replies[number] = reply
end
return replies
""".encode()
)

# KEYS: floor. ARGV: token and cluster that must stand there, token and cluster to put there, each "" for
# none. Returns whether they stood there.
MOVE_FLOOR = Script(
    b"""
local floor = redis.call('HMGET', KEYS[1], 'token', 'cluster')
if (floor[1] == '0' and '' or floor[1] or '') ~= ARGV[1] or (floor[2] or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[3])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'cluster', ARGV[4]) end
redis.call('PERSIST', KEYS[1])
return 1
"""
)

# KEYS: mark, floor. ARGV: the mark's fence, or "" for any. Removes the mark if the floor refuses it.
PURGE = Script(
    f"""{_ABOVE}
local fence = redis.call('HGET', KEYS[1], 'fence')
local floor = redis.call('HMGET', KEYS[2], 'token', 'cluster')
if not fence or (ARGV[1] ~= '' and ARGV[1] ~= fence) then return 0 end
local cluster, token = string.match(fence, '^(.-)/.-/(.-)$')
if cluster and (not floor[2] or floor[2] == cluster) and above(token, floor[1] or '0') then return 0 end
return redis.call('DEL', KEYS[1])
""".encode()
)


def fenced_script(source: str) -> Script:
    """A user's own Lua with the check in front. It sees its KEYS and ARGV as if nothing were added."""
    if source.startswith("#!"):
        raise NotFenceable(
            "a script that begins with #! can't have the check put in front of it: leave that line out"
        )
    return Script(f"{_CHECK}KEYS[#KEYS] = nil ARGV[#ARGV] = nil {source}".encode())
