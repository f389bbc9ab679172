"""`python -m ops.bench`: the relay node beside a plain aiohttp bridge, under the same load in the same run; the bus.

Each party is a process of its own and meets the others on 127.0.0.1 only: the bridge that is measured, the callers, the
model, Redis. Nothing of the relay's is imported: it is started as its operators start it.
"""
