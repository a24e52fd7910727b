"""How far a long loop is, in the log."""

import logging
import time

logger = logging.getLogger(__name__)

_LOG_EVERY = 30.0  # seconds


class Progress:
    """Logs how far a loop is, not more often than is readable; nothing where it is short.

    Args:
        what: What is done.
        last: Whether the end is logged however short the loop was.

    Example:
        >>> progress = Progress("batches")
        >>> progress(1, 2)
    """

    def __init__(self, what: str, *, last: bool = False) -> None:
        self._what, self._last = what, last
        self._began = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Take what is done and all there is to do."""
        now = time.monotonic()
        if now - self._said >= _LOG_EVERY or (self._last and done == total):
            self._said = now
            left = (now - self._began) / done * (total - done)
            logger.info("%s: %d of %d, about %.0f s left", self._what, done, total, left)
