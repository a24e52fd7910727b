"""Full steps that a schedule lists one by one, with the forecasts that were fitted to them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from agentsd.schedule.listed import MEMORY, ListedSteps
from agentsd.unet.controller import Controller
from agentsd.unet.noise_levels import NoiseLevels


class ListedController(Controller):
    """Takes the full steps from a list, and forecasts with its weights.

    A run that enters late (image-to-image) lacks the first full steps. Its calls are full until two were, and its
    forecasts are 0.7 of the straight line until all full steps that a weight asks for were there.

    Args:
        levels: Noise levels of the run; those of the list.
        listed: The full steps.
        settings: Further arguments of `Controller`.

    Example:
        >>> steps = ListedSteps(sigmas=(4.0, 2.0, 1.0, 0.5, 0.0), full=(0, 1, 3), weights=((1.5, -0.5),))
        >>> controller = ListedController(NoiseLevels(steps.sigmas, "epsilon"), steps)
        >>> sample = torch.ones(1, 4, 2, 2)
        >>> for index in range(2):
        ...     controller.observe(index, sample, index * sample)
        >>> controller.needs_full(2), float(controller.forecast(2, sample).mean())
        (False, 1.5)
    """

    measures = False  # the list is fixed, so the device never waits

    def __init__(self, levels: NoiseLevels, listed: ListedSteps, **settings: Any) -> None:
        super().__init__(levels, tolerance=1.0, **settings)
        self.listed = listed
        self._full = frozenset(listed.full)
        self._weights = dict(zip(listed.skipped, listed.weights, strict=False))
        self._older: list[tuple[int, Tensor]] = []  # the last full steps with their numbers, newest first

    @property
    def nbytes(self) -> int:
        """Bytes of the predictions that are held: three at most."""
        seen = {one.value.data_ptr() for one in self._seen}
        return super().nbytes + sum(value.nbytes for _, value in self._older if value.data_ptr() not in seen)

    def needs_full(self, index: int) -> bool:
        """Return whether the list has the call, or too few full steps came before it."""
        return index in self._full or len(self._seen) < 2

    def observe(
        self, index: int, sample: Tensor, prediction: Tensor, *, guide: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Take in a full step."""
        super().observe(index, sample, prediction, guide=guide)
        most = MEMORY if self._weights else 0
        self._older = [(index, self._seen[-1].value), *self._older][:most]

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return the prediction that a skipped step uses."""
        weights = self._weights.get(index)
        wanted = [full for full in self.listed.full if full < index][::-1][: len(weights or ())]
        if weights is None or [number for number, _ in self._older[: len(wanted)]] != wanted:
            return self._prediction(index, sample, self._forecast(self.times[index]))
        value = weights[0] * self._older[0][1]
        for weight, (_, older) in zip(weights[1:], self._older[1:], strict=False):
            value = torch.add(value, older, alpha=weight)
        return self._prediction(index, sample, value)
