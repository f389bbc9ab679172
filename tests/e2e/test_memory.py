"""What a node that takes a call over learns of its conversation."""

import asyncio
import json
import time

from fanout import BusSettings, CallRecord, Fanout
from tests.support.fleet import Nodes, event, system_message

TOOL_RESULT = {"type": "function_call_output", "call_id": "call_never_made", "output": "{}"}


async def test_what_the_model_took_is_remembered_as_it_was_sent(nodes: Nodes) -> None:
    """With its id and in order; what the model did not take is not there."""
    node = await nodes.add()
    client = await nodes.connect(node)
    await event(client, "session.created")
    call_id = client._response.headers["X-Call-Id"]
    sent = [system_message("one"), {**system_message("two"), "id": "item_of_the_backend"}]
    receipts = [(await nodes.put(node, call_id, {"item": item}))[1] for item in sent]
    status, _ = await nodes.put(node, call_id, {"item": TOOL_RESULT})
    assert status == 409
    settings = BusSettings(node="b", region="iad", regions={"iad": nodes._redis_url}, prefix=nodes.prefix)
    async with Fanout.running(settings, clock=time.time) as bus, asyncio.timeout(5):
        record = await bus.call(call_id, "test")
        assert isinstance(record, CallRecord)
        taken = await bus.take(record, lambda _: None)
        await taken.wait_registered()
        assert [json.loads(item) for item in taken.memory] == [
            {**item, "id": receipt["item_id"]} for item, receipt in zip(sent, receipts, strict=True)
        ]
    assert receipts[1]["item_id"] == "item_of_the_backend"
