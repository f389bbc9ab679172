"""What the two plain bridges have in common: their command line, and the file that says where they listen."""

import argparse
import json
import os
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

Listening = Callable[[int], None]  # to be called with the port
Serve = Callable[[str, ssl.SSLContext | None, Listening], Coroutine[Any, Any, None]]


def run(serve: Serve) -> None:
    """Run a bridge until it is killed; ``serve`` gets the upstream's URL and the context to verify it with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--ready-file", type=Path, required=True)
    options = parser.parse_args()
    context = ssl.create_default_context(cafile=options.ca) if options.ca is not None else None

    def listening(port: int) -> None:
        partial = options.ready_file.with_name(f".{options.ready_file.name}")
        partial.write_text(json.dumps({"url": f"http://127.0.0.1:{port}", "pid": os.getpid()}))
        partial.replace(options.ready_file)

    uvloop.run(serve(options.upstream, context, listening))
