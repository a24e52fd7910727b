"""Numbers of the device that the host reads later."""

from collections.abc import Callable

import torch
from torch import Tensor


def later(number: Tensor) -> Callable[[], float]:
    """Start to copy a number to the host; the function that is returned waits for it.

    Args:
        number: The number, [].

    Example:
        >>> read = later(torch.tensor(2.5))
        >>> read()
        2.5
    """
    if number.device.type != "cuda":
        return lambda: float(number)
    host = torch.empty((), dtype=number.dtype, pin_memory=True)
    host.copy_(number, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def read() -> float:
        done.synchronize()
        return float(host)

    return read
