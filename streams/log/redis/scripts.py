"""The Lua scripts that load and change what Redis holds. Redis runs each of them atomically.

Each script is a .lua file in this folder; its first comment documents its arguments and its reply.
Redis 6.2 or newer, or Valkey. Not a cluster: a script uses keys of several slots.

Invariants:

1. Only the producer of a running run appends to it, in order and without holes. `append` refuses
   (fences) every other worker. A topic has no producer ('' in its fields): `publish` appends.
2. A script that ends a run writes its `end` event and its status together.
3. `append` evicts only the oldest events, and none after the cursor of another worker unless told.
4. Every script can be repeated with the same arguments after a lost reply.

Keys, all with the prefix:

    run:<run>       hash    info, status, producer, numbers of the first and the last event, policy,
                            hash of its unique key; if they are set, owner, key and start, and
                            arguments until it ends
    log:<run>       stream  the frame of event n is entry (n+1)-0; the `end` event has the status,
                            one of a topic the token of its call
    cursors:<run>   hash    worker with readers -> number of the event at which its cursor is, and
                            number of its readers
    unique:<hash>   string  the run that has the unique key with that hash
    owner:<owner>   zset    the runs of that owner
    keys            zset    <key> NUL <run> for the runs that have a key
    workers         zset    worker -> end of its lease, in ms of Redis's clock; 0: it has left
    runs:<worker>   set     the unfinished runs that it produces
    inbox:<worker>  stream  its notifications: closed, claimed, forgotten, cursor, left, wake
"""

import hashlib
from importlib.resources import files

_FOLDER = files(__package__)
_COMMON = (_FOLDER / "common.lua").read_text("utf-8")


class Script:
    """The text of one script, and the SHA-1 hash by which EVALSHA names it."""

    def __init__(self, name: str) -> None:
        self.text = _COMMON + (_FOLDER / f"{name}.lua").read_text("utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


APPEND = Script("append")
CLAIM = Script("claim")
CLOSE = Script("close")
CREATE = Script("create")
DISCARD = Script("discard")
EXTEND = Script("extend")
FIND_BY_KEY = Script("find_by_key")
LEAVE = Script("leave")
LIST_RUNS = Script("list_runs")
LOAD_EVENTS = Script("load_events")
LOAD_STATE = Script("load_state")
PUBLISH = Script("publish")
REMOVE_WORKER = Script("remove_worker")
RENEW = Script("renew")
SELECT = Script("select")
SET_CURSOR = Script("set_cursor")

SCRIPTS = [value for value in list(globals().values()) if isinstance(value, Script)]
