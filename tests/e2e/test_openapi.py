"""The description against a live node: schemathesis makes requests of it, right and wrong, and judges every answer."""

import asyncio
import sys
from pathlib import Path

from tests.e2e.test_api import call_on, say
from tests.support.fleet import Nodes, token

_CONFIG = """\
headers = {{ Authorization = "Bearer {token}" }}
seed = 20261121
workers = 1
max-stream-events = 1
request-timeout = 20
generation = {{ max-examples = {examples}, deterministic = true, database = "none" }}
parameters = {{ "path.call_id" = "{call_id}" }}

[[operations]]
include-operation-id = "hang_up"
parameters = {{ "path.call_id" = "{doomed}" }}
checks = {{ positive_data_acceptance = {{ expected-statuses = ["2xx", "410"] }} }}

[[operations]]
include-operation-id = "refuse_webrtc"
checks = {{ not_a_server_error = {{ expected-statuses = ["501"] }}, positive_data_acceptance = {{ expected-statuses = ["501"] }} }}
"""


async def test_every_answer_of_a_live_node_is_one_that_is_described(nodes: Nodes, tmp_path: Path) -> None:
    """Statuses, types, error codes and headers, for requests that are right, wrong and at the limits."""
    node = await nodes.add()
    call_id, client = await call_on(nodes, node)
    doomed, _unused = await call_on(nodes, node)
    await say(client)
    config = tmp_path / "schemathesis.toml"
    config.write_text(_CONFIG.format(token=token("call", "control", "read", "mint"), call_id=call_id, doomed=doomed, examples=15))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    run = await asyncio.create_subprocess_exec(
        *command,
        f"{node.url}/openapi.json",
        "--exclude-operation-id=realtime",
        "--exclude-operation-id=voice",
        "--continue-on-failure",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async def listen(): 
        async for _ in client: pass
    import asyncio as a
    async with a.TaskGroup() as tg:
        t=tg.create_task(listen())
        output, _ = await run.communicate()
        t.cancel()
    assert run.returncode == 0, output.decode()
