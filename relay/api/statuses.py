"""What requests are answered with: statuses, their meanings, codes and types, those that several routes share. Pure."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from relay.api.schema import Receipt, Refusal

Shape = type[msgspec.Struct]


class Answer(NamedTuple):
    """One status: what it means, and the type of its body by content type, or the codes of its error."""

    text: str
    bodies: Mapping[str, Shape | None] = {}  # None: a text of that content type
    codes: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}


def in_json(shape: Shape, text: str, **headers: str) -> Answer:
    """A success with a JSON body."""
    return Answer(text, {"application/json": shape}, headers={key.replace("_", "-"): headers[key] for key in headers})


def error(text: str, *codes: str) -> Answer:
    """A refusal with one of these codes."""
    return Answer(text, {"application/json": Refusal}, codes)


def busy(text: str, *codes: str) -> Answer:
    """A refusal that is over soon."""
    return Answer(text, {"application/json": Refusal}, codes, {"Retry-After": "Seconds after which to come again."})


TOKEN: Final = {
    401: error("No token, or none that can be accepted.", "missing_token", "invalid_api_key", "token_revoked"),
    403: error(
        "The token lacks the scope, or is for another call alone, or the page's origin is not allowed.",
        "missing_scope",
        "token_for_one_call",
        "origin_not_allowed",
    ),
}
NO_PLAN: Final = "unknown_plan"
NO_CALL: Final = {404: error("No such call of this tenant.", "call_not_found")}
WRONG: Final = {422: error("A wrong value; `param` names it.", "invalid_value")}
AWAY: Final = {
    503: busy(
        "The call's Redis does not answer, or is new and does not know yet: ask again.",
        "region_unreachable",
        "call_state_unknown",
    )
}
PUT: Final = {
    200: in_json(Receipt, "The receipt: the step that was waited for is reached, or the message ended otherwise."),
    202: in_json(Receipt, "The receipt so far, at the timeout. The message goes on by itself."),
    400: error("No JSON.", "invalid_json"),
    401: TOKEN[401],
    403: error(f"{TOKEN[403].text} Or the node has no plan as the token names it.", *TOKEN[403].codes, NO_PLAN),
    **NO_CALL,
    409: error(
        "The call's client has not come yet; or the id was used for another message; or the tool call is unknown or "
        "has its result.",
        "call_not_started",
        "idempotency_conflict",
        "unknown_tool_call",
        "tool_call_answered",
        "malformed_message",
    ),
    410: error("The call has ended; or the tool call is no longer waited for.", "call_ended", "tool_call_late"),
    413: error("Too large.", "body_too_large", "message_too_large"),
    **WRONG,
    429: busy(
        "The call has as many unanswered messages as it may, or the tenant sends more in a second than it may.",
        "inbox_full",
        "too_many_messages",
    ),
    503: busy(
        "The call's Redis does not answer, or is new and does not know yet, or earlier messages of this node are in "
        "the way: repeat with the same `id`.",
        "region_unreachable",
        "call_state_unknown",
        "bus_busy",
    ),
}
UPGRADE: Final = {
    101: Answer("A WebSocket."),
    400: error(
        "The query or the handshake is wrong.",
        "missing_model",
        "contradictory_query",
        "call_id_not_supported",
        "invalid_key",
    ),
    401: TOKEN[401],
    403: error(
        "The token lacks the scope or is for another agent; or the page's origin is not allowed, by the node or the "
        "token; or the node has no such agent for this tenant, or no plan as the token names it.",
        "missing_scope",
        "origin_not_allowed",
        "agent_not_allowed",
        "unknown_agent",
        NO_PLAN,
    ),
    404: error(
        "No such call of this tenant; or the call of this client secret is no longer reserved.",
        "call_id_not_found",
        "call_not_found",
    ),
    410: error("The call has ended.", "call_ended"),
    **WRONG,
    426: error("No WebSocket handshake.", "upgrade_required", "unsupported_version"),
    429: busy(
        "The tenant has as many calls as its plan allows, or began as many within a minute, or its minutes of the day "
        "are spent.",
        "too_many_calls",
        "too_many_starts",
        "minutes_spent",
    ),
    503: busy(
        "The node takes no calls now; or the call's Redis does not answer or does not know yet; or what the tenant has "
        "used is not known, and the node takes no calls without: connect again.",
        "node_draining",
        "node_full",
        "region_unreachable",
        "call_state_unknown",
        "bus_busy",
        "limits_unknown",
    ),
}
# What the port itself says, before a handler is asked.
_CROWD: Final = busy(
    "More connections or requests come from the caller's address than the node takes.",
    "too_many_connections",
    "too_many_requests",
)
_GARBLED: Final = error("The body is not encoded as its headers say.", "invalid_body")
_LATE: Final = error("The body did not come in time.", "request_timeout")
_NO_KEYS: Final = busy("The keys to check the token with cannot be had at present: try again.", "keys_unavailable")


def complete(answers: Mapping[int, Answer], *, has_body: bool, has_scope: bool) -> dict[int, Answer]:
    """Add to a route's own answers what the port says before its handler is asked."""
    before = {429: _CROWD}
    if has_body:
        before |= {400: _GARBLED, 408: _LATE}
    if has_scope:
        before[503] = _NO_KEYS
    return {**answers, **{status: _either(answers.get(status), answer) for status, answer in before.items()}}


def _either(first: Answer | None, second: Answer) -> Answer:
    if first is None:
        return second
    codes = tuple(dict.fromkeys((*first.codes, *second.codes)))
    return first._replace(text=f"{first.text} {second.text}", codes=codes)
