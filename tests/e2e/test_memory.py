"""What the home Redis keeps of a call, so that another node could go on with it."""

import json

import redis.asyncio as redis

from fanout.core.keys import Keys
from tests.support.fleet import Nodes, event, system_message

TOOL_RESULT = {"type": "function_call_output", "call_id": "call_never_made", "output": "{}"}


async def test_what_the_model_took_is_remembered_as_it_was_sent(nodes: Nodes) -> None:
    """With its id, in order, written in the same step as the receipt; what the model did not take is not there."""
    node = await nodes.add()
    client = await nodes.connect(node)
    await event(client, "session.created")
    call_id = client._response.headers["X-Call-Id"]
    sent = [system_message("one"), {**system_message("two"), "id": "item_of_the_backend"}]
    receipts = [(await nodes.put(node, call_id, {"item": item}))[1] for item in sent]
    status, _ = await nodes.put(node, call_id, {"item": TOOL_RESULT})
    assert status == 409
    reader = redis.from_url(nodes._redis_url)
    try:
        kept = await reader.lrange(Keys(nodes.prefix).call(call_id, "test").memory, 0, -1)
    finally:
        await reader.aclose()
    assert [json.loads(item) for item in kept] == [
        {**item, "id": receipt["item_id"]} for item, receipt in zip(sent, receipts, strict=True)
    ]
    assert receipts[1]["item_id"] == "item_of_the_backend"
