"""The types of the HTTP surface: what a request may say and what an answer says, with limits and words for readers.

Requests are decoded into these types (``relay.api.reading``) and the OpenAPI document is built from them
(``relay.api.openapi``), so that neither can say what the other doesn't. Pure; the rules of an item are in
``fanout.items``.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from fanout.items import Lifetime, MessageId

_POSITION: Final = r"^[0-9]{1,20}-[0-9]{1,20}\Z"
_POSITION_OR_NONE: Final = r"^([0-9]{1,20}-[0-9]{1,20})?\Z"
_SECONDS: Final = "Seconds since the epoch."
_AGENT: Final = "The agent of a new call, for a token that names none. Without it, `default`."
_ORIGIN: Final = r"^[a-z][a-z0-9+.-]{0,30}://([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[1-9][0-9]{0,4})?\Z"
_JTI: Final = r"^[ -~]{1,256}\Z"
_DAY: Final[dict[str, Any]] = {"extra_json_schema": {"format": "date"}}
_GROUPS: Final = r"^(day|agent|region)(,(day|agent|region)){0,2}\Z"


def _said(text: str, *examples: Any, **limits: Any) -> Meta:
    return Meta(description=text or None, examples=list(examples) or None, **limits)


# What stands in a path


class Paths(msgspec.Struct, frozen=True):
    """The variable parts of the paths."""

    call_id: Annotated[
        str,
        _said(
            "The call's id: the `X-Call-Id` header of the client's upgrade, `call_id` of a client secret, or `id` in "
            "the list of calls.",
            "rtc_iad_4fZq0cJ8wLxkV2bTnR7sYd",
        ),
    ]
    message_id: Annotated[str, _said("`id` of a receipt.", "msg_5b1c9e0f2a7d4c38")]


# Queries and headers


class RealtimeQuery(msgspec.Struct, frozen=True):
    """Where a WebSocket leads."""

    model: (
        Annotated[str, _said("A new call with this model. Without it, the agent's.", "gpt-realtime-2.1")] | UnsetType
    ) = UNSET
    intent: Annotated[str, _said("Instead of a model: `transcription`.")] | UnsetType = UNSET
    agent: Annotated[str, _said(_AGENT)] | UnsetType = UNSET
    call_id: Annotated[str, _said("No new call: attach to this one.")] | UnsetType = UNSET
    audio: Annotated[str, _said("`1` with `call_id`: the call's audio too.")] | UnsetType = UNSET


class VoiceQuery(msgspec.Struct, frozen=True):
    """How a client without an SDK wants its call."""

    model: Annotated[str, _said("Without it, the agent's.")] | UnsetType = UNSET
    agent: Annotated[str, _said(_AGENT)] | UnsetType = UNSET
    audio: Annotated[str, _said("`binary`: the model's audio comes as binary frames of raw PCM16.")] | UnsetType = UNSET


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which calls, and how many."""

    limit: Annotated[int, _said("Calls on a page.", ge=1, le=100)] = 20
    after: Annotated[str, _said("`last_id` of the page before.")] | UnsetType = UNSET
    region: Annotated[str, _said("Only calls on nodes of this region.")] = ""
    node: Annotated[str, _said("Only calls on this node.")] = ""
    agent: Annotated[str, _said("Only calls of this agent.")] = ""
    state: Annotated[Literal["live", "moving"], _said("Only calls in this state.")] | UnsetType = UNSET


class TranscriptQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the transcript is written."""

    format: Annotated[Literal["json", "text"], _said("Without it, as the `Accept` header says.")] | UnsetType = UNSET


class UsageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which days' usage, summed how, and written how. Days are those of UTC."""

    start_day: (
        Annotated[str, _said("The first day. Without it, six days before the last.", "2026-11-01", **_DAY)] | UnsetType
    ) = UNSET
    end_day: (
        Annotated[str, _said("The last day, at most 91 later. Without it, today.", "2026-11-30", **_DAY)] | UnsetType
    ) = UNSET
    agent: Annotated[str, _said("Only what calls of this agent used.")] | UnsetType = UNSET
    group_by: Annotated[
        str, _said("A sum for each of these, with commas between: `day`, `agent`, `region`.", pattern=_GROUPS)
    ] = "day,agent"
    format: (
        Annotated[Literal["json", "jsonl", "csv"], _said("Without it, as the `Accept` header says.")] | UnsetType
    ) = UNSET


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to go on."""

    after: Annotated[str, _said("A position, as `id` of an event names it.", pattern=_POSITION)] | UnsetType = UNSET


class StreamHeaders(msgspec.Struct, frozen=True, rename={"last_event_id": "Last-Event-ID"}):
    """What an `EventSource` sends when it connects again."""

    last_event_id: (
        Annotated[str, _said("Goes before `after`; empty is none.", pattern=_POSITION_OR_NONE)] | UnsetType
    ) = UNSET


class Waiting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long an answer may take."""

    timeout_ms: Annotated[int, _said("After this long the answer is 202.", ge=1, le=60_000)] = 5000


class PutQuery(Waiting, frozen=True, forbid_unknown_fields=True):
    """Which step of the receipt to wait for."""

    wait: Annotated[
        Literal["accepted", "delivered", "applied", "answered"],
        _said("Answer once the receipt has reached this, or the message has ended otherwise."),
    ] = "accepted"


class EventQuery(PutQuery, frozen=True, forbid_unknown_fields=True):
    """What the body of an event has no room for."""

    expires_in_ms: Lifetime = 60_000
    id: MessageId | UnsetType = UNSET


class Tracing(msgspec.Struct, frozen=True):
    """The trace that a message belongs to."""

    traceparent: Annotated[str, _said("W3C trace context; it stays in the fleet.")] | UnsetType = UNSET


# Bodies; that of an item is fanout.items.ItemBody


class EventBody(msgspec.Struct, frozen=True):
    """A client event of the Realtime API, as the call's client could send it. It goes to the model as it is."""

    type: Annotated[
        str,
        _said(
            "Any but `input_audio_buffer.append`: audio comes from the call's client.",
            "session.update",
            "response.cancel",
            min_length=1,
            max_length=128,
        ),
    ]
    event_id: Annotated[str, _said("The model's error, if there is one, names it.", max_length=512)] | None = None


class ExpiresAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a client secret can be used to begin its call. The call may last longer."""

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[
        float, _said("From when it was made.", ge=10, le=7200, multiple_of=1, extra_json_schema={"type": "integer"})
    ] = 600


class SessionDefaults(msgspec.Struct, frozen=True):
    """The session that the call begins with, in the Realtime API's shape; at most 64 KiB. The client may change it."""

    type: Literal["realtime", "transcription"]
    model: Annotated[str, _said("Without it, the agent's.", max_length=256)] | None = None


class SecretBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the client secret is for, as OpenAI's API has it."""

    expires_after: ExpiresAfter | None = None
    session: (
        Annotated[
            dict[str, Any],
            _said(
                "A session of the Realtime API. Fields that are not described go to the model as they are.",
                {"type": "realtime", "model": "gpt-realtime-2.1", "instructions": "Be brief."},
                extra={"one_of": (SessionDefaults,)},
            ),
        ]
        | None
    ) = None
    agent: (
        Annotated[
            str,
            _said(
                "The agent of the call. Without it, the token's, else `default`. A token that names an agent makes "
                "keys for no other.",
                "support",
                min_length=1,
                max_length=128,
            ),
        ]
        | None
    ) = None
    origin: (
        Annotated[
            str,
            _said(
                "The key opens its call only for pages of this origin, as browsers send it: in lower case, without a "
                "path.",
                "https://shop.example",
                pattern=_ORIGIN,
            ),
        ]
        | None
    ) = None


class RevocationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which token of the tenant opens nothing any more."""

    jti: Annotated[
        str,
        _said(
            "The token's `jti` claim; of a client secret it stands in the answer that it was made with.",
            "0d1c7a52f3b84e6f",
            pattern=_JTI,
        ),
    ]
    expires_at: (
        Annotated[
            float,
            _said(
                "The token's `exp`: after it there is nothing to refuse. Without it, 400 days from now.",
                1790000000,
                ge=1_500_000_000,  # no duration, nor milliseconds, is taken for a time
                le=99_999_999_999,
                multiple_of=1,
                extra_json_schema={"type": "integer"},
            ),
        ]
        | None
    ) = None


# Answers


class Step(msgspec.Struct, frozen=True):
    """Who took a message there."""

    node: str
    region: str


class Receipt(msgspec.Struct, frozen=True):
    """What became of a message so far."""

    object: Literal["realtime.call.receipt"]
    id: str
    call_id: str
    item_id: Annotated[str, _said("The item's id in the conversation.")]
    status: Annotated[
        Literal["accepted", "delivered", "applied", "answered", "failed", "expired", "rejected"],
        _said(
            "`accepted`: written to the call's inbox; `delivered`: the call's node has it; `applied`: the model took "
            "it; `answered`: the response that it asked for is done; else it ended otherwise and `error` says why."
        ),
    ]
    reached: Annotated[dict[str, float], _said(f"When each step was reached. {_SECONDS}", {"accepted": 1790000000.1})]
    by: dict[str, Step]
    node: Annotated[str, _said("Who said so last.")]
    region: str
    error: Annotated[
        dict[str, Any] | None, _said("`code` and `message`; the model's own error, verbatim, where it refused.")
    ]


class TranscriptEntry(msgspec.Struct, frozen=True):
    """An item of the conversation in words. Only the keys that apply are there."""

    id: str
    type: Annotated[str, _said("", "message", "function_call", "function_call_output")]
    at: Annotated[float, _said(f"When it came into the conversation. {_SECONDS}")] = 0.0
    role: Annotated[str, _said("Of a message.", "user", "assistant", "system")] | UnsetType = UNSET
    text: Annotated[str, _said("What was said, or the transcript of it.")] | UnsetType = UNSET
    name: Annotated[str, _said("Of the tool that is called.")] | UnsetType = UNSET
    call_id: Annotated[str, _said("Of the tool call.")] | UnsetType = UNSET
    arguments: Annotated[str, _said("Of the tool call, JSON.")] | UnsetType = UNSET
    output: Annotated[str, _said("Of a tool result.")] | UnsetType = UNSET
    status: Annotated[str, _said("", "completed", "in_progress", "incomplete")] | UnsetType = UNSET
    truncated_ms: Annotated[float, _said("The person interrupted and heard this much.")] | UnsetType = UNSET
    audio_ms: Annotated[float, _said("How long the answer is that was spoken, about.")] | UnsetType = UNSET
    hidden: Annotated[bool, _said("Whether it is kept from the client.")] | UnsetType = UNSET


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call. Which fields there are depends on its state."""

    object: Literal["realtime.call"]
    id: str
    state: Annotated[
        Literal["reserved", "live", "moving", "ended"],
        _said(
            "`reserved`: its client has not connected yet; `moving`: its node is gone and its client may come back; "
            "`ended`: known for an hour."
        ),
    ]
    region: Annotated[str, _said("Of its node; of a reserved call, its home.")] | UnsetType = UNSET
    node: str | UnsetType = UNSET
    agent: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    started_at: Annotated[float, _said(_SECONDS)] | UnsetType = UNSET
    age: Annotated[float, _said("Seconds since it started.")] | UnsetType = UNSET
    ended_at: Annotated[float, _said(_SECONDS)] | UnsetType = UNSET
    why: Annotated[str, _said("Why it ended.", "client_closed", "node_draining")] | UnsetType = UNSET
    fault: Annotated[str, _said("Whose doing the end was: client, model, bus, node or policy.")] | UnsetType = UNSET
    close_code: Annotated[int | None, _said("Of the client's WebSocket.")] | UnsetType = UNSET
    upstream_close_code: Annotated[int | None, _said("Of the model's WebSocket.")] | UnsetType = UNSET
    usage: (
        Annotated[dict[str, Any], _said("Sums of the model's usage blocks, and the number of `responses`.")] | UnsetType
    ) = UNSET
    transcript: list[TranscriptEntry] | UnsetType = UNSET
    dropped: Annotated[int, _said("Oldest entries of a long call that are no longer kept.")] | UnsetType = UNSET


class CallList(msgspec.Struct, frozen=True):
    """Live calls, newest first."""

    object: Literal["list"]
    data: list[Call]
    has_more: bool
    last_id: Annotated[str | None, _said("`after` of the next page.")]
    unreachable_regions: Annotated[list[str], _said("Regions whose calls are missing here.")]


class Transcript(msgspec.Struct, frozen=True):
    """A call's conversation in words."""

    object: Literal["realtime.call.transcript"]
    call_id: str
    state: Literal["reserved", "live", "moving", "ended"]
    dropped: Annotated[int, _said("Oldest entries of a long call that are no longer kept.")]
    data: list[TranscriptEntry]


class Secret(msgspec.Struct, frozen=True):
    """A client secret."""

    value: Annotated[str, _said("The key with which the client connects, in OpenAI's SDKs too.", "ek_eyJhbGciOi…")]
    expires_at: Annotated[int, _said(_SECONDS)]
    session: Annotated[dict[str, Any], _said("The session that the call begins with.")]
    call_id: Annotated[str, _said("The call that it is for: it can be watched already.")]
    jti: Annotated[str, _said("The key's id, to revoke it by.")]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What calls of a tenant used, summed; `day`, `agent` and `region` are null where they are summed over."""

    object: Literal["realtime.usage"] = "realtime.usage"
    day: Annotated[str | None, _said("Of UTC; a call over midnight counts on both.", "2026-11-21")] = None
    agent: str | None = None
    region: Annotated[str | None, _said("Of the nodes that held the calls.")] = None
    calls: Annotated[int, _said("Calls that began.")] = 0
    seconds: Annotated[float, _said("For which calls lasted.")] = 0.0
    audio_seconds_in: Annotated[float, _said("Of audio that clients sent.")] = 0.0
    audio_seconds_out: Annotated[float, _said("Of audio that the model made.")] = 0.0
    responses: Annotated[int, _said("Of the model, those cut short too.")] = 0
    messages: Annotated[int, _said("What backends put into calls and the model took.")] = 0
    input_text_tokens: Annotated[int, _said("As the model's `response.done` says, like the next five.")] = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    cached_tokens: Annotated[int, _said("Of the input tokens of all kinds, those that were cached.")] = 0
    output_text_tokens: int = 0
    output_audio_tokens: int = 0
    transcription_tokens: Annotated[int, _said("Of transcribing what people said, in and out together.")] = 0
    transcription_seconds: Annotated[float, _said("The same, of models that count seconds instead.")] = 0.0


class UsageList(msgspec.Struct, frozen=True):
    """Usage in the order of day, agent, region. What has none is left out."""

    object: Literal["list"]
    data: list[Usage]
    has_more: Annotated[bool, _said("Never: there are no pages.")]
    last_id: None
    start_day: Annotated[str, _said("The first day that was looked at.")]
    end_day: Annotated[str, _said("The last.")]
    unreachable_regions: Annotated[list[str], _said("Regions whose usage is missing here.")]


class Revocation(msgspec.Struct, frozen=True):
    """A token that opens nothing any more."""

    object: Literal["realtime.token.revocation"]
    jti: str
    expires_at: Annotated[int, _said(f"When the token expires, as far as is known. {_SECONDS}")]
    regions: Annotated[list[str], _said("Whose nodes know of it, within a few seconds.")]
    unreachable_regions: Annotated[list[str], _said("Whose nodes still take the token.")]


class Fault(msgspec.Struct, frozen=True):
    """What is wrong."""

    type: Annotated[str, _said("", "invalid_request_error", "server_error")]
    code: str
    message: str
    param: Annotated[str | None, _said("The field that it is about.")]


class Refusal(msgspec.Struct, frozen=True):
    """An error, as OpenAI's API writes it."""

    error: Fault
    receipt: Annotated[Receipt, _said("Of a message that was rejected.")] | UnsetType = UNSET


class HalfRevoked(Refusal, frozen=True, kw_only=True):
    """What a revocation is answered with where some region could not be told; the others were."""

    object: Literal["realtime.token.revocation"] | UnsetType = UNSET
    jti: str | UnsetType = UNSET
    expires_at: int | UnsetType = UNSET
    regions: Annotated[list[str], _said("Whose nodes know of it, within a few seconds.")] | UnsetType = UNSET
    unreachable_regions: Annotated[list[str], _said("Whose nodes still take the token.")] | UnsetType = UNSET
