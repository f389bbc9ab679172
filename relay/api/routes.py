"""The one table of the public port's routes: path, scope, types, answers. The application and its description are made
from it (``relay.http``, ``relay.api.openapi``). Pure; a route names its handler and knows nothing of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final

from fanout.items import ItemBody
from relay.api.schema import (
    Call,
    CallList,
    EventBody,
    EventQuery,
    HalfRevoked,
    ListQuery,
    PutQuery,
    RealtimeQuery,
    Receipt,
    Revocation,
    RevocationBody,
    Secret,
    SecretBody,
    StreamHeaders,
    StreamQuery,
    Tracing,
    Transcript,
    TranscriptQuery,
    UsageList,
    UsageQuery,
    VoiceQuery,
    Waiting,
)
from relay.api.statuses import (
    AWAY,
    NO_CALL,
    PUT,
    TOKEN,
    UPGRADE,
    WRONG,
    Answer,
    Shape,
    busy,
    complete,
    error,
    in_json,
)


class Kind(Enum):
    """What the answer of a route is."""

    PLAIN = auto()
    STREAM = auto()  # server-sent events
    UPGRADE = auto()  # a WebSocket; the handler checks the token itself, which may come as a subprotocol


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


CLIENTS, CALLS, MESSAGES, TENANT, ABOUT = "Clients", "Calls", "Messages", "Tenant", "About"
_CALL: Final = "/v1/realtime/calls/{call_id}"

_TABLE: Final = (
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
        answers=UPGRADE,
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
        answers=UPGRADE,
    ),
    Route(
        name="create_client_secret",
        method="POST",
        path="/v1/realtime/client_secrets",
        title="Make a key for a client",
        text="A short-lived key for one new call, in OpenAI's shape, bound to the tenant and the plan of this token, "
        "to an agent and, if wanted, to the pages of one origin. The answer names the call, so it can be watched "
        "before its client connects, and the key's id, by which it can be revoked.",
        group=CLIENTS,
        scope="mint",
        body=SecretBody,
        answers={
            200: in_json(Secret, "The key.", X_Call_Id="The call that it is for."),
            400: error("No JSON.", "invalid_json"),
            401: TOKEN[401],
            403: error(f"{UPGRADE[403].text} Or the token is for one call.", *UPGRADE[403].codes, "token_for_one_call"),
            413: error("The body, or the session in it, is too large.", "body_too_large", "session_too_large"),
            **WRONG,
            501: error("The node has no secret to sign with: keys are made elsewhere.", "minting_not_configured"),
            503: AWAY[503],
        },
    ),
    Route(
        name="refuse_webrtc",
        method="POST",
        path="/v1/realtime/calls",
        title="WebRTC is not served",
        text="What the Agents SDK tries by default in browsers. The error says what to set instead.",
        group=CLIENTS,
        answers={501: error("Use the WebSocket transport.", "webrtc_not_supported")},
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
            200: in_json(CallList, "A page of calls."),
            **TOKEN,
            404: error("`after` names no call of this tenant.", "call_not_found"),
            **WRONG,
            **AWAY,
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
        answers={200: in_json(Call, "The call."), **TOKEN, **NO_CALL, **AWAY},
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
            **TOKEN,
            **NO_CALL,
            **WRONG,
            **AWAY,
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
            **TOKEN,
            **NO_CALL,
            410: error("The call has ended. What is kept of it can be read with `Last-Event-ID`.", "call_ended"),
            **WRONG,
            503: busy(
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
            200: in_json(Call, "The call is being ended."),
            202: PUT[202],
            **TOKEN,
            **NO_CALL,
            409: error("The call's client has not come yet.", "call_not_started"),
            410: error("The call has ended already.", "call_ended"),
            **WRONG,
            429: PUT[429],
            503: PUT[503],
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
        answers=PUT,
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
        answers={**PUT, 422: error("A wrong value; `param` names it.", "invalid_value", "audio_not_allowed")},
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
            200: in_json(Receipt, "The receipt."),
            **TOKEN,
            404: error("No such call of this tenant, or no such message.", "call_not_found", "message_not_found"),
            503: busy(
                "The call's Redis does not answer, or is new and does not know yet; or a newer version of the relay "
                "wrote the receipt: ask again.",
                "region_unreachable",
                "call_state_unknown",
                "receipt_unreadable",
            ),
        },
    ),
    Route(
        name="show_usage",
        method="GET",
        path="/v1/usage",
        title="Read what was used",
        text="What the tenant's calls used, in sums by day, agent and region. Nodes report every few seconds and at a "
        "call's end, and no report counts twice. JSON says in `unreachable_regions` which regions are missing; where "
        "JSON lines or CSV, which have no place for that, are wanted, the answer is 503 then. CSV has always the same "
        "columns; a name that a spreadsheet would take for a formula has a `'` before it.",
        group=TENANT,
        scope="read",
        query=UsageQuery,
        answers={
            200: Answer("The sums.", {"application/json": UsageList, "application/jsonl": None, "text/csv": None}),
            **TOKEN,
            **WRONG,
            503: busy("The Redis of a region does not answer: ask again.", "region_unreachable"),
        },
    ),
    Route(
        name="revoke_token",
        method="POST",
        path="/v1/tokens/revoke",
        title="Revoke a token",
        text="A token of this tenant, or a client secret, opens nothing any more: every node of the fleet knows within "
        "a few seconds, and ends calls that were opened with it. The same again does no harm.",
        group=TENANT,
        scope="mint",
        body=RevocationBody,
        answers={
            200: in_json(Revocation, "It is revoked."),
            400: error("No JSON.", "invalid_json"),
            **TOKEN,
            413: error("Too large.", "body_too_large"),
            **WRONG,
            429: busy("As many tokens are revoked as can be kept. This one is not.", "too_many_revocations"),
            503: Answer(
                "Some region could not be told: repeat it. `regions` and `unreachable_regions` say which.",
                {"application/json": HalfRevoked},
                ("region_unreachable",),
                busy("").headers,
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


ROUTES: Final = tuple(
    replace(each, answers=complete(each.answers, has_body=each.body is not None, has_scope=each.scope is not None))
    for each in _TABLE
)
