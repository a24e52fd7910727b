"""The pictures of a batch: which samples of a call belong to each, and calls for some of the pictures alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MOST_COPIES = 3  # of a batch in one call: two with guidance, three with perturbed-attention guidance too


@dataclass(frozen=True)
class Part:
    """Some pictures of a batch. Guidance repeats the batch, so sample `i` of a call belongs to picture `i % of`.

    Args:
        pictures: Their places in the batch, rising.
        of: Pictures in the batch.

    Example:
        >>> part = Part((0, 2), of=3)
        >>> part.take(torch.tensor([1, 2, 3, 10, 20, 30]))
        tensor([ 1,  3, 10, 30])
        >>> round(part.share, 2)
        0.67
    """

    pictures: tuple[int, ...]
    of: int

    @property
    def share(self) -> float:
        """Share of the batch."""
        return len(self.pictures) / self.of

    def take(self, batch: Tensor) -> Tensor:
        """Return the samples of these pictures, [copies * pictures, ...]."""
        # Slices: a list of numbers would become a tensor on the device, and the host would wait for it.
        return torch.stack([batch[picture :: self.of] for picture in self.pictures], 1).flatten(0, 1)

    def put(self, samples: Tensor, batch: Tensor) -> None:
        """Write the samples of these pictures into a batch."""
        for place, picture in enumerate(self.pictures):
            batch[picture :: self.of] = samples[place :: len(self.pictures)]

    def only(self, arguments: Mapping[str, Any], by_sample: tuple[str, ...], batch: int) -> dict[str, Any]:
        """Return the arguments of a denoiser's call for these pictures alone.

        Args:
            arguments: Arguments by name.
            by_sample: What the paths of arguments with an entry for each sample begin with; names are joined by dots.
            batch: Samples in the call.

        Example:
            >>> part = Part((1,), of=2)
            >>> part.only({"sample": torch.zeros(4, 4, 8, 8), "timestep": 9}, ("sample",), 4)["sample"].shape
            torch.Size([2, 4, 8, 8])
        """
        return {name: _cut(name, value, by_sample, batch, self.take) for name, value in arguments.items()}


def copies_in(sample: Tensor, known: dict[int, int]) -> int:
    """Return how often a call repeats its pictures, as guidance does; waits for the device once for each batch size.

    Args:
        sample: The latent of a call, [B, ...].
        known: What was found before, by batch size; filled here.

    Example:
        >>> latents = torch.randn(2, 4, 8, 8)
        >>> copies_in(torch.cat([latents, latents]), {}), copies_in(latents, {})
        (2, 1)
    """
    batch = sample.shape[0]
    if batch not in known:
        numbers = (copies for copies in range(2, _MOST_COPIES + 1) if batch % copies == 0)
        known[batch] = next((copies for copies in numbers if _repeats(sample, batch // copies)), 1)
    return known[batch]


def second_half(arguments: Mapping[str, Any], by_sample: tuple[str, ...], batch: int) -> dict[str, Any]:
    """Return the arguments of a denoiser's call for the second half of its samples; see `Part.only`.

    Example:
        >>> second_half({"sample": torch.zeros(4, 4, 8, 8)}, ("sample",), 4)["sample"].shape
        torch.Size([2, 4, 8, 8])
    """
    return {
        name: _cut(name, value, by_sample, batch, lambda one: one[batch // 2 :]) for name, value in arguments.items()
    }


def _repeats(sample: Tensor, pictures: int) -> bool:
    return torch.equal(sample[pictures:], sample[:-pictures])


def _cut(path: str, value: Any, by_sample: tuple[str, ...], batch: int, cut: Any) -> Any:
    if isinstance(value, Tensor):
        return cut(value) if value.ndim and value.shape[0] == batch and path.startswith(by_sample) else value
    if isinstance(value, Mapping):
        return {name: _cut(f"{path}.{name}", one, by_sample, batch, cut) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cut(path, one, by_sample, batch, cut) for one in value)
    return value
