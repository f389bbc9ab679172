"""The description against a live node: schemathesis makes requests of it, right and wrong, and judges every answer."""

import asyncio
import sys
from pathlib import Path

import aiohttp

from relay.api.routes import ROUTES, Kind
from tests.e2e.test_api import call_on, say
from tests.support.fleet import Nodes, token

# A wait of a millisecond may end in 503, who hangs up what has ended gets 410, and no schema says that one day comes
# before another, or which agents there are: all are described.
_CONFIG = """\
headers = {{ Authorization = "Bearer {token}" }}
parameters = {{ "path.call_id" = "{call_id}" }}
generation = {{ max-examples = 15, deterministic = true, database = "none" }}
checks = {{ not_a_server_error = {{ expected-statuses = ["2xx", "4xx", "503"] }} }}
workers = 1
max-stream-events = 1
request-timeout = 20

[[operations]]
include-operation-id = "hang_up"
parameters = {{ "path.call_id" = "{doomed}" }}
checks = {{ positive_data_acceptance = {{ expected-statuses = ["2xx", "410", "503"] }} }}

[[operations]]
include-operation-id = "show_usage"
checks = {{ positive_data_acceptance = {{ expected-statuses = ["2xx", "422"] }} }}

[[operations]]
include-operation-id = "create_client_secret"
checks = {{ positive_data_acceptance = {{ expected-statuses = ["2xx", "403"] }} }}

[[operations]]
include-operation-id = "refuse_webrtc"

[operations.checks]
not_a_server_error = {{ expected-statuses = ["4xx", "501"] }}
positive_data_acceptance = {{ expected-statuses = ["501"] }}
"""


async def _listen(client: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in client:
        pass


async def test_every_answer_of_a_live_node_is_one_that_is_described(nodes: Nodes, tmp_path: Path) -> None:
    """Statuses, types, error codes and headers, for requests that are right, wrong and at the limits."""
    node = await nodes.add(IP_STARTS_PER_MINUTE="0")  # it asks faster than one address may
    (call_id, client), (doomed, other) = await call_on(nodes, node), await call_on(nodes, node)
    await say(client)
    config = tmp_path / "schemathesis.toml"
    credentials = token("call", "control", "read", "mint")
    config.write_text(_CONFIG.format(token=credentials, call_id=call_id, doomed=doomed))
    described = [route for route in ROUTES if route.kind is not Kind.UPGRADE and route.path != "/openapi.json"]
    excluded = [f"--exclude-operation-id={route.name}" for route in ROUTES if route.kind is Kind.UPGRADE]
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
        *("run", f"{node.url}/openapi.json", "--continue-on-failure", *excluded),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.TaskGroup() as clients:
        listening = [clients.create_task(_listen(each)) for each in (client, other)]
        output = (await run.communicate())[0].decode()
        for each in listening:
            each.cancel()
    assert run.returncode == 0, output
    assert f"Tested: {len(described)}" in output
