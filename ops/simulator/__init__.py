"""A model simulator: a server that speaks the OpenAI Realtime API (GA, WebSocket) and parrots what it hears.

`session.py` is one conversation without I/O; `server.py` puts it on a socket; `python -m ops.simulator` runs it.
"""
