"""Calls to what may be gone already."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

_SECONDS = 1.0


async def quietly(function: Callable[..., Any], *args: Any) -> None:
    """Await a call, for a second at most; what goes wrong is only logged."""
    try:
        await asyncio.wait_for(function(*args), _SECONDS)
    except Exception:
        logger.debug("%r failed", function, exc_info=True)
