"""Dialling the model: URL, headers, deadline, and what its refusals mean for the call."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from picows import WSHandshakeError

from relay import handoff
from relay.core.endings import Why
from relay.legs import Leg


class DialError(Exception):
    """No model leg: the row of the ending table, and an error code and message that the client's user can act on."""

    def __init__(self, why: Why, code: str, message: str) -> None:
        super().__init__(message)
        self.why = why
        self.code = code


class Target(NamedTuple):
    """What of the upstream URL depends on the call."""

    model: str | None
    intent: str | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """An OpenAI-Realtime-compatible server; what differs between providers is configuration.

    ``model_parameter`` is the query parameter that names the model; ``headers`` carry the key.
    """

    url: str
    headers: tuple[tuple[str, str], ...]
    dial_seconds: float
    max_message: int
    context: ssl.SSLContext
    model_parameter: str = "model"

    def url_for(self, target: Target) -> str:
        """Return the URL to dial: the configured one with the call's parameters added."""
        scheme, netloc, path, query, _ = urlsplit(self.url)
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        if target.model:
            parameters[self.model_parameter] = target.model
        if target.intent:
            parameters["intent"] = target.intent
        return urlunsplit((scheme, netloc, path, urlencode(parameters), ""))

    async def dial(self, target: Target, leg: Leg) -> None:
        """Connect the leg.

        Raises:
            DialError: no connection within the deadline, or the server refused it.
        """
        try:
            async with asyncio.timeout(self.dial_seconds):
                await handoff.connect(
                    self.url_for(target),
                    leg,
                    headers=dict(self.headers),
                    context=self.context,
                    max_message=self.max_message,
                    on_refused=leg.on_ws_refused,
                )
        except TimeoutError:
            text = f"The model did not answer within {self.dial_seconds:g} s. Try again in a moment."
            raise DialError(Why.MODEL_UNREACHABLE, "upstream_timeout", text) from None
        except ssl.SSLCertVerificationError as error:
            text = "The model's certificate could not be verified; the relay's operator must mend this."
            raise DialError(Why.MODEL_UNREACHABLE, "upstream_certificate", text) from error
        except WSHandshakeError as error:
            raise _refusal(error) from error
        except OSError as error:
            text = "The model cannot be reached. Try again in a moment."
            raise DialError(Why.MODEL_UNREACHABLE, "upstream_unreachable", text) from error


def _refusal(error: WSHandshakeError) -> DialError:
    """Read the HTTP status with which a server refuses the upgrade."""
    status = int(error.response.status) if error.response is not None else 0
    if status in (401, 403):
        text = (
            f"The model's server refused the relay's credentials (HTTP {status}); the relay's operator must mend this."
        )
        return DialError(Why.MODEL_KEY, "upstream_credentials_refused", text)
    if status == 429:
        return DialError(
            Why.MODEL_BUSY, "upstream_busy", "The model's server takes no more calls (HTTP 429). Try later."
        )
    if 400 <= status < 500:
        text = f"The model's server refused the call (HTTP {status}); check the model's name."
        return DialError(Why.MODEL_REFUSED, "upstream_refused", text)
    text = f"The model's server failed (HTTP {status or 'answer not understood'}). Try again in a moment."
    return DialError(Why.MODEL_UNREACHABLE, "upstream_failed", text)
