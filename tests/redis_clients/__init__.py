"""Redis clients of all kinds play one scenario against a real node.

`scenario.yaml` is what each must be able to do; `scenario.py` plays it; the others connect:
`redis_py.py` (threads and asyncio), `shells.py` (redis-cli and valkey-cli on a terminal), `node.py`
(ioredis and node-redis, which `npm.py` installs).
"""
