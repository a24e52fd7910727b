"""A controller for each picture of a batch, so what a picture is like does not depend on the others."""

from collections.abc import Callable

from torch import Tensor

from agentsd.unet.batch import Part
from agentsd.unet.controller import Controller

Guide = Callable[[Tensor], Tensor]


class ByPicture:
    """The controllers of a call. How many pictures it has is known after its first full step.

    Args:
        make: Returns a new controller of the run.

    Example:
        >>> from agentsd.unet.noise_levels import NoiseLevels
        >>> levels = NoiseLevels((4.0, 3.0, 2.0, 1.0, 0.5, 0.0), "epsilon")
        >>> group = ByPicture(lambda: Controller(levels, tolerance=0.1))
        >>> smooth_and_rough = torch.ones(2, 4, 2, 2)
        >>> for index in range(3):
        ...     smooth_and_rough[1] *= -2
        ...     group.observe(index, smooth_and_rough, smooth_and_rough, Part((0, 1), of=2))
        >>> group.part(3)
        Part(pictures=(1,), of=2)
    """

    def __init__(self, make: Callable[[], Controller]) -> None:
        self._make = make
        self._controllers = [make()]
        self._like: Tensor | None = None  # one number in the samples' shape, on their device

    @property
    def calls(self) -> int:
        """Calls of the whole schedule."""
        return self._controllers[0].calls

    @property
    def nbytes(self) -> int:
        """Bytes of what all controllers hold."""
        return sum(one.nbytes for one in self._controllers)

    def fits(self, sample: Tensor) -> bool:
        """Return whether a sample has the shape and device of the full steps before."""
        return self._like is None or (self._like.shape == sample.shape and self._like.device == sample.device)

    def part(self, index: int) -> Part:
        """Return the pictures that need a full step. Waits for the device at the first call after a full step."""
        full = tuple(place for place, one in enumerate(self._controllers) if one.needs_full(index))
        return Part(full, len(self._controllers))

    def observe(
        self, index: int, sample: Tensor, prediction: Tensor, part: Part, *, guide: Guide | None = None
    ) -> None:
        """Take in a full step of some pictures, or of all.

        Args:
            index: Number of the call.
            sample: What entered the denoiser, [copies * pictures, ...], of all pictures.
            prediction: What it predicted, [copies * pictures, ...], of the pictures in `part`.
            part: The pictures.
            guide: Combines the copies of one picture, [copies, ...], into the guided one.
        """
        self._like = sample.new_empty(1).expand(sample.shape) if self._like is None else self._like
        self._controllers += [self._make() for _ in range(part.of - len(self._controllers))]
        for place, picture in enumerate(part.pictures):
            mine = prediction[place :: len(part.pictures)]
            self._controllers[picture].observe(index, sample[picture :: part.of], mine, guide=guide)

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return the predictions that a skipped step uses, and count the step for the pictures that skip it.

        Args:
            index: Number of the call.
            sample: What entered the denoiser, [copies * pictures, ...].

        Returns:
            The predictions of all samples; 0 for the pictures that need a full step.
        """
        number = len(self._controllers)
        full = self.part(index).pictures
        found = {
            place: one.forecast(index, sample[place::number])
            for place, one in enumerate(self._controllers)
            if place not in full
        }
        if number == 1:
            return found[0]
        first = next(iter(found.values()))
        whole = first.new_zeros(sample.shape[0], *first.shape[1:])
        for place, prediction in found.items():
            whole[place::number] = prediction
        return whole
