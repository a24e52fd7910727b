"""Whether an error means that memory does not suffice; loads no torch."""

import re

_WORDS = (
    r"out of memory|can't allocate memory|not enough memory|Storage size calculation overflowed|invalid buffer size"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, or one of torch on any device, says that memory does not suffice.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA out of memory.")), is_out_of_memory(ValueError("out of memory"))
        (True, False)
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and re.search(_WORDS, str(error), re.IGNORECASE) is not None
