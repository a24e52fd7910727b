"""The random choices of a step: cell patterns and sampled tokens. They follow from the seed alone."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from agentsd.attention.sampling import choose_tokens
from agentsd.attention.tokens import CellPattern, cell_pattern
from agentsd.unet.transforms import outside_transforms

_LEAST = 256  # choices that are kept; a longer run keeps more
_MOST = 8192


class Choices:
    """Cell patterns and sampled tokens by step and grid."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._cache: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = threading.Lock()
        self._room = _LEAST

    def make_room(self, steps: int, levels: int) -> None:
        """Make room for all choices of a run; the next run finds them again."""
        self._room = max(self._room, min(steps * levels, _MOST))

    def clear(self) -> None:
        """Forget all choices. The same call computes an equal one again."""
        with self._lock:
            self._cache.clear()
            self._room = _LEAST

    def pattern(self, index: int | None, height: int, width: int, stride: int, device: torch.device) -> CellPattern:
        """Return the cell pattern of a step; without an index it is not random."""

        def make() -> CellPattern:
            generator = None if index is None else self._generator(index, height, width, stride)
            return cell_pattern(height, width, stride, generator).to(device)

        made: CellPattern = self._cached(("pattern", index, height, width, stride, device), make)
        return made

    def sampled(self, index: int | None, height: int, width: int, stride: int, device: torch.device) -> Tensor:
        """Return the tokens that a step samples; without an index they are not random."""

        def make() -> Tensor:
            # Successive steps sample each token of a cell in turn, then in another order. Layers that run at every
            # fourth step alone would otherwise see one token of each cell only.
            row, place = divmod(index or 0, stride**2)
            generator = None if index is None else self._generator("sample", row, height, width, stride)
            return choose_tokens(height, width, stride, place, generator).to(device)

        made: Tensor = self._cached(("sampled", index, height, width, stride, device), make)
        return made

    def _generator(self, *words: object) -> torch.Generator:
        """Return a generator seeded by what it is for, not by what ran before: equal calls give equal images."""
        text = " ".join(str(word) for word in (self.seed, *words))
        digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest))

    def _cached(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = outside_transforms(lambda: _lasting(make))
                while len(self._cache) > self._room:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(key)
            return self._cache[key]


def _lasting(make: Callable[[], Any]) -> Any:
    with torch.inference_mode(False):  # an inference tensor could not serve a training step later
        return make()
