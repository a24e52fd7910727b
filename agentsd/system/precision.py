"""Which arithmetic a device computes fast: some CPUs have no bfloat16 or float16 units and emulate them."""

from collections.abc import Callable

import torch

# What torch's own CPU kernels ask before they use a processor's half-precision units.
_CPU_UNITS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def is_fast(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Return whether a device computes a dtype by units of its own; all but CPUs are taken to do so.

    Without them matrix products on a CPU are emulated one element at a time: 2048x2048 in bfloat16 takes 57 s in the
    place of 0.1 s in float32 on an AMD EPYC with AVX2 (2 threads, torch 2.13).

    Args:
        dtype: A floating-point dtype.
        device: The device.

    Example:
        >>> is_fast(torch.float32)
        True
    """
    unit = _CPU_UNITS.get(dtype)
    if unit is None or torch.device(device).type != "cpu":
        return True
    asked: Callable[[], bool] | None = getattr(torch.ops.mkldnn, unit, None)
    return asked is not None and bool(asked())


def fast_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """Return the narrowest dtype that is safe and fast on a device: float16 on a GPU, bfloat16 or float32 on a CPU.

    Example:
        >>> fast_dtype("cuda")
        torch.float16
    """
    if torch.device(device).type != "cpu":
        return torch.float16
    return torch.bfloat16 if is_fast(torch.bfloat16, device) else torch.float32


def dtype_name(name: str = "auto", device: torch.device | str = "cpu") -> str:
    """Return the name of a dtype; `"auto"` is `fast_dtype`.

    Example:
        >>> dtype_name("auto", "cuda"), dtype_name("float32", "cuda")
        ('float16', 'float32')
    """
    return str(fast_dtype(device)).removeprefix("torch.") if name == "auto" else name


def slow_dtype_warning(dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Return the warning for a dtype that the device emulates; `None` if it does not.

    Example:
        >>> slow_dtype_warning(torch.float32, "cpu") is None
        True
    """
    if is_fast(dtype, device):
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"dtype={name!r} is emulated on this CPU, which has no units for it: expect it to be tens to hundreds of times "
        "slower than 'float32'. Use float32 here."
    )


def cpu_autocast() -> torch.autocast:
    """Return the context in which a CPU computes in bfloat16 what it may, if it has units for it, else in float32.

    Example:
        >>> with cpu_autocast():
        ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
        >>> product.dtype == fast_dtype("cpu")
        True
    """
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_fast(torch.bfloat16))
