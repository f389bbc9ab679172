"""The one table of the public port's routes: path, scope, types, answers. The application and its description are made
from it (``relay.http``, ``relay.api.openapi``). Pure; a route names its handler and knows nothing of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

import msgspec

from fanout.items import ItemBody
from relay.api.schema import (
    Call,
    CallList,
    EventBody,
    EventQuery,
    ListQuery,
    PutQuery,
    RealtimeQuery,
    Receipt,
    Refusal,
    Secret,
    SecretBody,
    StreamHeaders,
    StreamQuery,
    Tracing,
    Transcript,
    TranscriptQuery,
    VoiceQuery,
    Waiting,
)

Shape = type[msgspec.Struct]


class Kind(Enum):
    """What the answer of a route is."""

    PLAIN = auto()
    STREAM = auto()  # server-sent events
    UPGRADE = auto()  # a WebSocket; the handler checks the token itself, which may come as a subprotocol


class Answer(NamedTuple):
    """One status: what it means, and the type of its body by content type, or the codes of its error."""

    text: str
    bodies: Mapping[str, Shape | None] = {}  # None: a text of that content type
    codes: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation; ``name`` is its id in the document and the name of its handler."""

    name: str
    method: str
    path: str
    also: str = ""  # another path that leads there
    title: str
    text: str
    group: str
    scope: str | None = None
    kind: Kind = Kind.PLAIN
    query: Shape | None = None
    headers: Shape | None = None
    body: Shape | None = None
    answers: Mapping[int, Answer] = field(default_factory=dict)


def _json(shape: Shape, text: str, **headers: str) -> Answer:
    return Answer(text, {"application/json": shape}, headers={key.replace("_", "-"): headers[key] for key in headers})


def _error(text: str, *codes: str) -> Answer:
    return Answer(text, {"application/json": Refusal}, codes)


def _busy(text: str, *codes: str) -> Answer:
    """An error that is over soon."""
    return Answer(text, {"application/json": Refusal}, codes, {"Retry-After": "Seconds after which to come again."})


_TOKEN: Final = {
    401: _error("No token, or none that can be accepted.", "missing_token", "invalid_api_key"),
    403: _error(
        "The token lacks the scope, or is for another call alone, or the page's origin is not allowed.",
        "missing_scope",
        "token_for_one_call",
        "origin_not_allowed",
    ),
}
_NO_CALL: Final = {404: _error("No such call of this tenant.", "call_not_found")}
_WRONG: Final = {422: _error("A wrong value; `param` names it.", "invalid_value")}
_AWAY: Final = {
    503: _busy(
        "The call's Redis does not answer, or is new and does not know yet: ask again.",
        "region_unreachable",
        "call_state_unknown",
    )
}
_PUT: Final = {
    200: _json(Receipt, "The receipt: the step that was waited for is reached, or the message ended otherwise."),
    202: _json(Receipt, "The receipt so far, at the timeout. The message goes on by itself."),
    400: _error("No JSON.", "invalid_json"),
    **_TOKEN,
    **_NO_CALL,
    409: _error(
        "The call's client has not come yet; or the id was used for another message; or the tool call is unknown or "
        "has its result.",
        "call_not_started",
        "idempotency_conflict",
        "unknown_tool_call",
        "tool_call_answered",
        "malformed_message",
    ),
    410: _error("The call has ended; or the tool call is no longer waited for.", "call_ended", "tool_call_late"),
    413: _error("Too large.", "body_too_large", "message_too_large"),
    **_WRONG,
    429: _busy("The call has as many unanswered messages as it may.", "inbox_full"),
    503: _busy(
        "The call's Redis does not answer, or is new and does not know yet, or earlier messages of this node are in "
        "the way: repeat with the same `id`.",
        "region_unreachable",
        "call_state_unknown",
        "bus_busy",
    ),
}
_UPGRADE: Final = {
    101: Answer("A WebSocket."),
    400: _error(
        "The query or the handshake is wrong.",
        "missing_model",
        "contradictory_query",
        "call_id_not_supported",
        "invalid_key",
    ),
    401: _TOKEN[401],
    403: _error(
        "The token lacks the scope, the page's origin is not allowed, or the node has no such agent.",
        "missing_scope",
        "origin_not_allowed",
        "unknown_agent",
    ),
    404: _error(
        "No such call of this tenant; or the call of this client secret is no longer reserved.",
        "call_id_not_found",
        "call_not_found",
    ),
    409: _error("The call of this client secret has its client.", "call_in_use"),
    410: _error("The call has ended.", "call_ended"),
    **_WRONG,
    426: _error("No WebSocket handshake.", "upgrade_required", "unsupported_version"),
    503: _busy(
        "The node takes no calls now, or the call's Redis does not answer or does not know yet: connect again.",
        "node_draining",
        "node_full",
        "region_unreachable",
        "call_state_unknown",
        "bus_busy",
    ),
}

CLIENTS, CALLS, MESSAGES, ABOUT = "Clients", "Calls", "Messages", "About"
_CALL: Final = "/v1/realtime/calls/{call_id}"

ROUTES: Final = (
    Route(
        name="realtime",
        method="GET",
        path="/v1/realtime",
        title="Open a call, or attach to one",
        text="A WebSocket that speaks OpenAI's Realtime API: the official SDKs work with their base URL changed. "
        "`model` begins a call (scope `call`); `call_id` attaches to one (scope `control`). The token comes as bearer, "
        "or as the subprotocol `openai-insecure-api-key.<token>` beside `realtime`.",
        group=CLIENTS,
        scope="call",
        kind=Kind.UPGRADE,
        query=RealtimeQuery,
        answers=_UPGRADE,
    ),
    Route(
        name="voice",
        method="GET",
        path="/voice",
        also="/ws",
        title="Open a call without an SDK",
        text="A WebSocket: the agent's session is set up for the client, a binary frame is raw PCM16 24 kHz mono, all "
        "else is JSON events of the Realtime API. `/ws` is the same.",
        group=CLIENTS,
        scope="call",
        kind=Kind.UPGRADE,
        query=VoiceQuery,
        answers=_UPGRADE,
    ),
    Route(
        name="create_client_secret",
        method="POST",
        path="/v1/realtime/client_secrets",
        title="Make a key for a client",
        text="A short-lived key for one new call, in OpenAI's shape, bound to the tenant and the agent of this token. "
        "The answer names the call, so it can be watched before its client connects.",
        group=CLIENTS,
        scope="mint",
        body=SecretBody,
        answers={
            200: _json(Secret, "The key.", X_Call_Id="The call that it is for."),
            400: _error("No JSON.", "invalid_json"),
            401: _TOKEN[401],
            403: _UPGRADE[403],
            413: _error("The body, or the session in it, is too large.", "body_too_large", "session_too_large"),
            **_WRONG,
            503: _AWAY[503],
        },
    ),
    Route(
        name="refuse_webrtc",
        method="POST",
        path="/v1/realtime/calls",
        title="WebRTC is not served",
        text="What the Agents SDK tries by default in browsers. The error says what to set instead.",
        group=CLIENTS,
        answers={501: _error("Use the WebSocket transport.", "webrtc_not_supported")},
    ),
    Route(
        name="list_calls",
        method="GET",
        path="/v1/realtime/calls",
        title="List live calls",
        text="The tenant's live calls in all regions, newest first. With a filter that few calls match a page may be "
        "short, even empty, while `has_more` says that there are more.",
        group=CALLS,
        scope="read",
        query=ListQuery,
        answers={
            200: _json(CallList, "A page of calls."),
            **_TOKEN,
            404: _error("`after` names no call of this tenant.", "call_not_found"),
            **_WRONG,
            **_AWAY,
        },
    ),
    Route(
        name="show_call",
        method="GET",
        path=_CALL,
        title="Look at a call",
        text="A call with its usage and its transcript so far; why it ended, if it did, for an hour.",
        group=CALLS,
        scope="read",
        answers={200: _json(Call, "The call."), **_TOKEN, **_NO_CALL, **_AWAY},
    ),
    Route(
        name="show_transcript",
        method="GET",
        path=f"{_CALL}/transcript",
        title="Read the conversation",
        text="The conversation in words, in its order, without audio; for an hour after the end too. As text it has a "
        "line for each entry: `[0:07] user: …`.",
        group=CALLS,
        scope="read",
        query=TranscriptQuery,
        answers={
            200: Answer("The transcript.", {"application/json": Transcript, "text/plain": None}),
            **_TOKEN,
            **_NO_CALL,
            **_WRONG,
            **_AWAY,
        },
    ),
    Route(
        name="watch_events",
        method="GET",
        path=f"{_CALL}/events",
        title="Follow a call",
        text="The call's events as server-sent events, without audio: `id` is the position, `event` the type, `data` "
        "the event of the Realtime API as it is. First comes `session.created` with the session as it is now. Who "
        "connects again with `Last-Event-ID` goes on where it was; `relay.gap` says that events in between are no "
        "longer kept, `relay.ended` that the call ended and why, `relay.too_slow` that the reader was. A call that is "
        "only reserved can be followed before it begins.",
        group=CALLS,
        scope="read",
        kind=Kind.STREAM,
        query=StreamQuery,
        headers=StreamHeaders,
        answers={
            200: Answer("The events, until the call ends.", {"text/event-stream": None}),
            **_TOKEN,
            **_NO_CALL,
            410: _error("The call has ended. What is kept of it can be read with `Last-Event-ID`.", "call_ended"),
            **_WRONG,
            503: _busy(
                "The call's Redis does not answer, or is new and does not know yet; or this node follows as many calls "
                "as it can, or is shutting down: connect again.",
                "region_unreachable",
                "call_state_unknown",
                "bus_busy",
                "node_draining",
            ),
        },
    ),
    Route(
        name="hang_up",
        method="POST",
        path=f"{_CALL}/hangup",
        title="End a call",
        text="The path of OpenAI's `calls.hangup`. A body is not looked at.",
        group=CALLS,
        scope="control",
        query=Waiting,
        headers=Tracing,
        answers={
            200: _json(Call, "The call is being ended."),
            202: _PUT[202],
            **_TOKEN,
            **_NO_CALL,
            409: _error("The call's client has not come yet.", "call_not_started"),
            410: _error("The call has ended already.", "call_ended"),
            **_WRONG,
            429: _PUT[429],
            503: _PUT[503],
        },
    ),
    Route(
        name="put_item",
        method="POST",
        path=f"{_CALL}/items",
        title="Put a message or a tool result into a call",
        text="Into a live call, through any node, once, in order, with a receipt whose `status` climbs `accepted` → "
        "`delivered` → `applied` → `answered`, or ends as `failed`, `expired` or `rejected`.",
        group=MESSAGES,
        scope="control",
        query=PutQuery,
        headers=Tracing,
        body=ItemBody,
        answers=_PUT,
    ),
    Route(
        name="put_event",
        method="POST",
        path=f"{_CALL}/events",
        title="Send an event to the model",
        text="A raw client event, as the call's client could send it, with a receipt. The model's own error, if it "
        "refuses it, stands in the receipt.",
        group=MESSAGES,
        scope="control",
        query=EventQuery,
        headers=Tracing,
        body=EventBody,
        answers={**_PUT, 422: _error("A wrong value; `param` names it.", "invalid_value", "audio_not_allowed")},
    ),
    Route(
        name="show_receipt",
        method="GET",
        path=f"{_CALL}/items/{{message_id}}",
        title="Ask what became of a message",
        text="The receipt of an item, an event or a hangup, for an hour after the call too.",
        group=MESSAGES,
        scope="read",
        answers={
            200: _json(Receipt, "The receipt."),
            **_TOKEN,
            404: _error("No such call of this tenant, or no such message.", "call_not_found", "message_not_found"),
            503: _busy(
                "The call's Redis does not answer, or is new and does not know yet; or a newer version of the relay "
                "wrote the receipt: ask again.",
                "region_unreachable",
                "call_state_unknown",
                "receipt_unreadable",
            ),
        },
    ),
    Route(
        name="show_openapi",
        method="GET",
        path="/openapi.json",
        title="This description",
        text="OpenAPI 3.1.",
        group=ABOUT,
        answers={200: Answer("The document.", {"application/json": None})},
    ),
    Route(
        name="show_docs",
        method="GET",
        path="/docs",
        title="This description, to be read",
        text="A page.",
        group=ABOUT,
        answers={200: Answer("The page.", {"text/html": None})},
    ),
)
