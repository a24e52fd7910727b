"""Flow matching as a scheduler of `StableDiffusionPipeline`."""

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


class FlowMatchScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """`FlowMatchEulerDiscreteScheduler` with the two names that older pipelines use.

    Example:
        >>> FlowMatchScheduler(shift=3.0).init_noise_sigma
        1.0
    """

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """Return the sample: flow matching scales nothing."""
        return sample
