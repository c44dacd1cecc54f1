"""Structured logs, set up once: one line a record, and library loggers that may print no payload."""

import logging
import sys

import structlog

PINNED = (
    "sse_starlette",
    "websockets",
    "asyncio",
    "acp",
    "httpx",
    "httpcore",
    "uvicorn",
    "alembic",
    "sqlalchemy",
)
"""Loggers that stay at WARNING whatever our level: below it they print payloads, headers and passwords."""


class _Silent(logging.Filter):
    """Drops what libraries write with a traceback of their own data (the agent SDK logs payloads so)."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.pathname.replace("\\", "/").split("/site-packages/")[-1].startswith("acp/")


def set_up_logging(level: str, style: str) -> None:
    """Send every log line to stderr: JSON, or text for people."""
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if as_text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta
    ]
    if not as_text:
        processors.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Silent())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*processors, renderer])
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in PINNED:
        logging.getLogger(name).setLevel(logging.WARNING)
