"""Dialling the models' servers: URL, headers, deadline, what refusals mean for the call, and which failed lately.

Which of an agent's upstreams a call is given to is ``relay.failover``'s to say.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import structlog
from picows import WSHandshakeError

from relay import handoff
from relay.core.endings import Why
from relay.core.outages import Outages
from relay.legs import Leg
from relay.rulebook.agents import DEFAULT
from relay.rulebook.upstreams import UpstreamConfig

log = structlog.get_logger("relay")


class DialError(Exception):
    """No model leg: the row of the ending table, and an error code and message that the client's user can act on.

    ``is_the_calls``: it may be for what this call asks for, such as a model that the server doesn't have.
    """

    def __init__(self, why: Why, code: str, message: str, *, is_the_calls: bool = False) -> None:
        super().__init__(message)
        self.why = why
        self.code = code
        self.is_the_calls = is_the_calls


class Target(NamedTuple):
    """What of the upstream URL depends on the call, and the name of the upstream."""

    model: str | None
    intent: str | None = None
    upstream: str = DEFAULT


def url_for(config: UpstreamConfig, target: Target) -> str:
    """Return the URL to dial: the configured one with the call's parameters added, as values of its query and no more.

    Clients choose the model's name: nothing that it contains may reach the scheme, the host, the port or the path.
    """
    scheme, netloc, path, query, _ = urlsplit(config.url)
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    if target.model:
        parameters[config.model_parameter] = config.models.get(target.model, target.model)
    if target.intent:
        parameters["intent"] = target.intent
    return urlunsplit((scheme, netloc, path, urlencode(parameters, errors="replace"), ""))


class Upstreams:
    """The OpenAI-Realtime-compatible servers of a node: dials them, and remembers which failed lately.

    ``configs`` returns those of the rulebook as it is now; no other host is ever dialled, and no redirect followed.
    """

    def __init__(
        self,
        configs: Callable[[], Mapping[str, UpstreamConfig]],
        *,
        dial_seconds: float,
        max_message: int,
        context: ssl.SSLContext,
        user_agent: str,
    ) -> None:
        self._configs = configs
        self._user_agent = user_agent
        self._context = context
        self._outages = Outages()
        self._loop = asyncio.get_running_loop()
        self.dial_seconds = dial_seconds
        self.max_message = max_message

    def config(self, name: str) -> UpstreamConfig | None:
        """Return an upstream as the rulebook has it now; None if it has it no more."""
        return self._configs().get(name)

    def known(self, names: Iterable[str]) -> list[str]:
        """Return those of an agent's upstreams that the rulebook still has; the default one where it has none."""
        configs = self._configs()
        return [name for name in names if name in configs] or [DEFAULT]

    def order(self, names: Iterable[str]) -> list[str]:
        """Return upstreams as they should be asked: those that failed lately last."""
        return self._outages.order(names, self._loop.time())

    def fail(self, name: str, code: str) -> None:
        """One has failed, or refused a call: it is asked last for a while."""
        if self._outages.fail(name, self._loop.time()):
            log.warning("upstream_failed", upstream=name, code=code)

    def serve(self, name: str) -> None:
        """One serves a call."""
        if self._outages.serve(name, self._loop.time()):
            log.info("upstream_serves_again", upstream=name)

    async def dial(self, target: Target, leg: Leg) -> None:
        """Connect the leg.

        Raises:
            DialError: no connection within the deadline, or the server refused it. It is remembered, unless it may be
                the call's own doing: what one tenant asks for must not turn the others' calls away.
        """
        try:
            await self._dial(target, leg)
        except DialError as error:
            if not error.is_the_calls:
                self.fail(target.upstream, error.code)
            raise

    async def _dial(self, target: Target, leg: Leg) -> None:
        config = self.config(target.upstream)
        if config is None:
            text = "The model's server is not configured any more."
            raise DialError(Why.MODEL_UNREACHABLE, "upstream_unknown", text)
        try:
            async with asyncio.timeout(self.dial_seconds):
                await handoff.connect(
                    url_for(config, target),
                    leg,
                    headers={**dict(config.headers), "User-Agent": self._user_agent},
                    context=self._context,
                    max_message=self.max_message,
                    on_refused=leg.on_ws_refused,
                )
        except TimeoutError:
            raise silent(self.dial_seconds) from None
        except ssl.SSLCertVerificationError as error:
            text = "The model's certificate could not be verified; the relay's operator must mend this."
            raise DialError(Why.MODEL_UNREACHABLE, "upstream_certificate", text) from error
        except WSHandshakeError as error:
            raise _refusal(error) from error
        except OSError as error:
            text = "The model cannot be reached. Try again in a moment."
            raise DialError(Why.MODEL_UNREACHABLE, "upstream_unreachable", text) from error


def silent(seconds: float) -> DialError:
    """Say that a server did not answer in time."""
    text = f"The model did not answer within {seconds:g} s. Try again in a moment."
    return DialError(Why.MODEL_UNREACHABLE, "upstream_timeout", text)


def _refusal(error: WSHandshakeError) -> DialError:
    """Read the HTTP status with which a server refuses the upgrade."""
    status = int(error.response.status) if error.response is not None else 0
    if status in (401, 403):
        text = (
            f"The model's server refused the relay's credentials (HTTP {status}); the relay's operator must mend this."
        )
        return DialError(Why.MODEL_KEY, "upstream_credentials_refused", text, is_the_calls=status == 403)
    if status == 429:
        return DialError(
            Why.MODEL_BUSY, "upstream_busy", "The model's server takes no more calls (HTTP 429). Try later."
        )
    if 400 <= status < 500:
        text = f"The model's server refused the call (HTTP {status}); check the model's name."
        return DialError(Why.MODEL_REFUSED, "upstream_refused", text, is_the_calls=True)
    text = f"The model's server failed (HTTP {status or 'answer not understood'}). Try again in a moment."
    return DialError(Why.MODEL_UNREACHABLE, "upstream_failed", text)
