"""`python -m tests.bench`: one node that owns thousands of calls on the bus, and what a sweep or an outage costs it.

Beside `ops.bench`, since it drives the bus itself, without a client's or a model's socket.
"""
