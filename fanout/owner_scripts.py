"""The scripts that an owner runs on its calls, each with keys and arguments in the order that its Lua file states."""

from fanout.core.inbox import Verdict
from fanout.core.records import pack_call, pack_error, pack_reached, pack_tombstone
from fanout.link import Run, Script
from fanout.messages import Tombstone
from fanout.owned import CALL_ENDED, OwnedCall
from fanout.settings import BusSettings

_CLAIM = Script("claim")
_END = Script("end")
_READ = Script("read")
_REFRESH = Script("refresh")
_SETTLE = Script("settle")


def call_ttl_ms(settings: BusSettings) -> int:
    """How long a live call's keys outlast the last sweep."""
    return int(settings.call_ttl_seconds * 1000)


def claim(call: OwnedCall, settings: BusSettings) -> Run:
    """Write the call's record with an epoch of its own, or restore it with the one it had."""
    record = call.record
    return Run(
        _CLAIM,
        _keys(call),
        (call.claim, call.epoch, record.tenant, record.state, pack_call(record), call_ttl_ms(settings)),
    )


def refresh(call: OwnedCall, settings: BusSettings) -> Run:
    """Ask whether the call is still ours and what its inbox had last; its keys live on."""
    return Run(_REFRESH, _keys(call), (call.epoch, call.claim, call_ttl_ms(settings)))


def read(call: OwnedCall, settings: BusSettings) -> Run:
    """The whole inbox."""
    return Run(_READ, (call.keys.call, call.keys.inbox), (settings.inbox_max,))


def settle(call: OwnedCall, message_id: str, verdict: Verdict, settings: BusSettings) -> Run:
    """Write a verdict and tell the publishers."""
    return Run(
        _SETTLE,
        _keys(call),
        (
            call.epoch,
            call.claim,
            call.id,
            message_id,
            verdict.status.value,
            pack_reached(verdict.reached),
            verdict.item_id,
            pack_error(verdict.error),
            int(verdict.wants_response),
            settings.node,
            settings.region,
            call_ttl_ms(settings),
        ),
    )


def end(call: OwnedCall, tombstone: Tombstone, settings: BusSettings) -> Run:
    """Tombstone, terminal receipts, and the living keys go."""
    return Run(
        _END,
        _keys(call),
        (
            call.epoch,
            call.claim,
            call.id,
            call.record.tenant,
            pack_tombstone(tombstone),
            pack_error(CALL_ENDED),
            settings.node,
            settings.region,
            int(settings.tombstone_seconds * 1000),
        ),
    )


def _keys(call: OwnedCall) -> tuple[str, str, str, str]:
    return call.keys.call, call.keys.inbox, call.keys.receipts, call.keys.tombstone
