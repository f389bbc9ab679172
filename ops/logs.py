"""Logs: one JSON line an event, to standard error. Nothing secret or personal is ever given to them."""

import logging
import sys
from typing import TextIO

import structlog

# Without the frames' variables: they hold tokens, keys and what people said.
_tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


def configure(level: str = "INFO", stream: TextIO = sys.stderr) -> None:
    """Set up the process's logs; other libraries' warnings come out in the same shape."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_tracebacks),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
        foreign_pre_chain=shared,
    )
    handler.setFormatter(formatter)
    # It has a traceback for every malformed request, and anybody can send those; handlers log what they fail at.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
