"""Which steps can be skipped within a tolerance, decided from the errors seen at full steps.

At each full step the controller compares the denoiser's prediction with what its forecast would have been. That is the
error `e` of the forecast at the distance that was just covered. An error of the predicted noise moves the final latent
by `|sigma_{i+1} - sigma_i| * e`, where `sigma` is noise over signal: along the sampling path,
`d(x / alpha) = eps d(sigma)`. Flow matching is the same with other names: `sigma = s / (1 - s)`, and the noise follows
from the velocity. The controller adds these costs over the steps that it skips. It asks for a full step
before their sum passes its bound.

Where nearly all is noise, a prediction hardly depends on the picture: the denoised picture changes with `1 / sigma`,
the noise with `1 / sigma ** 2`. Errors that are seen there are tiny and say little about later ones. The controller
lets them rise by that law until the picture begins to form.

Under strong guidance the denoiser answers an error of the latent with an opposite error of its prediction. Errors of
successive full steps then alternate, and the rest of the run takes most of them back. The controller counts the
alternating part less, and takes a share of the last error out of its forecasts, which ends the alternation. Under
multistep solvers the predictions themselves can alternate. Forecasts then follow less of the last change.

Guidance runs two copies of each picture, with and without the prompt. What both have in common changes steadily, what
sets them apart does not. Forecasts follow less of the change of the latter.

Nearest prior work measures other things: the smoothness of the latents (AdaptiveDiffusion,
https://arxiv.org/abs/2410.09873), the change of the model's input (EasyCache, https://arxiv.org/abs/2507.02860), or a
sign (SADA, https://arxiv.org/abs/2507.17135).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agentsd.unet.denoisers import latent_part
from agentsd.unet.later import later
from agentsd.unet.noise_levels import SMALLEST, NoiseLevels, moves_of, times_of

RULES = 5  # counts changes of the rules and constants below: measured rows name those that they were measured with
# One set of constants for all processes and solvers; `scripts/gauge.py` measures them.
_COST_PER_TOLERANCE = 1.15  # the sum of costs between two full steps that meets the promise
_COMMON = 0.9  # share of the last change that a forecast extrapolates, of what the copies of a picture have in common
_APART = 0.5  # the same of what sets them apart
_TURNED = -0.3  # the same of both where the last two changes are opposite
FADE = 0.7  # the same of all before two changes were seen, and under solvers that add noise
_TURNED_NOISY = 0.2  # the same of all under solvers that add noise where the last two changes are opposite
_EARLY = 0.65  # costs at high noise count by alpha ** _EARLY: the rest of the run corrects part of such errors
_HIGHEST = 75.0  # noise level above which `alpha` does not fall further
_TAKEN_BACK = 0.75  # share of the power of alternating errors that does not count
_DAMPED = 0.5  # share of the last error that a forecast leaves out where errors alternate fully
_ALTERNATES = 0.5  # minus the cosine between successive errors above which forecasts leave out some
_OPEN = 30.0  # noise level above which the picture is still open
_RISE = 2  # there, errors rise by (sigma_seen / sigma) ** _RISE
_LEARNING = 3  # full steps at the start: two for a first forecast, one to measure its error
_NOISY = 1.9  # costs under solvers that add noise: they move further than to the next noise level before they add it
_TINY = 1e-12
MOST_SKIPPED = 4  # steps in a row
FEWEST_CALLS = 10  # shorter runs have no steps to spare


@dataclass
class _Seen:
    """A full step and its time: the predicted noise, or the denoised picture if the solver adds noise."""

    value: Tensor
    time: float
    sigma: float
    rest: tuple[int, Tensor] | None = None  # what was predicted beside it, and on which axis


class Controller:
    """Decides between full and skipped steps of one run, and forecasts the predictions of skipped steps.

    Args:
        levels: Noise levels of the run.
        tolerance: The relative error of the final latent that the user accepts, above 0.
        max_skipped: Most skipped steps in a row.
        noisy: Whether the solver adds fresh noise. The forecast is then that of the denoised picture, which does not
            depend on the fresh noise.
        sign: -1 where the scheduler sees the negated prediction.

    Example:
        >>> controller = Controller(NoiseLevels((4.0, 3.0, 2.0, 1.0, 0.5, 0.0), "epsilon"), tolerance=0.1)
        >>> sample = torch.ones(1, 4, 2, 2)
        >>> for index in range(3):
        ...     controller.observe(index, sample, 0.9 * sample)
        >>> controller.needs_full(3)
        False
        >>> controller.forecast(3, sample).shape
        torch.Size([1, 4, 2, 2])
    """

    measures = True  # whether full steps show the forecast's error

    def __init__(
        self,
        levels: NoiseLevels,
        *,
        tolerance: float,
        max_skipped: int = MOST_SKIPPED,
        noisy: bool = False,
        sign: int = 1,
    ) -> None:
        self.levels = levels
        self.sign = sign
        self.bound = _COST_PER_TOLERANCE * tolerance
        self.max_skipped = max_skipped
        self.noisy = noisy
        self.times = times_of(levels.sigmas)
        self._moves = moves_of(levels.sigmas)
        self.skipped = 0  # in a row
        self.cost = 0.0  # of the steps skipped in a row
        self._seen: list[_Seen] = []
        self._off: Tensor | None = None  # the last error, of the samples as they enter the denoiser
        self._left: Tensor | None = None  # the share of it that forecasts leave out, for each sample
        self._shares: Tensor | None = None  # of the last change that forecasts extrapolate, [2, pictures]
        self._full_steps = 0
        self._measured: Callable[[], float] | None = None
        self._error = math.inf
        self._distance = 1.0

    @property
    def calls(self) -> int:
        """Calls of the whole schedule."""
        return len(self.levels.sigmas) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of what is held: two predictions and an error at most."""
        held = sum(seen.value.nbytes + (0 if seen.rest is None else seen.rest[1].nbytes) for seen in self._seen)
        return held + (0 if self._off is None else self._off.nbytes)

    def needs_full(self, index: int) -> bool:
        """Return whether call `index` must be a full step. Waits for the device at the first call after a full step."""
        if self._full_steps < _LEARNING or self.skipped >= self.max_skipped:
            return True
        if self._measured is None and math.isinf(self._error):
            return True
        return self.cost + self._cost(index) > self.bound

    def observe(
        self, index: int, sample: Tensor, prediction: Tensor, *, guide: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Take in a full step.

        Args:
            index: Number of the call.
            sample: What entered the denoiser, [B, ...]; what a condition adds to it (inpainting) is left out.
            prediction: What the denoiser predicted, [B, ...]; a predicted variance is no part of the error.
            guide: Combines the samples of a call into guided ones, where errors are measured.
        """
        sample, prediction, rest = latent_part(sample.detach(), prediction.detach())
        value = self._value(index, sample, prediction)
        time = self.times[index]
        again = bool(self._seen) and time <= self._seen[-1].time  # the same noise level once more: nothing to measure
        if self.measures and len(self._seen) == 2 and not again:
            self._distance = time - self._seen[-1].time
            off = value - self._forecast(time)
            self._shares = self._followed(value, guide)
            self._measured = later(self._measure(index, off, guide))
        fresh = _Seen(value, time, self.levels.sigmas[index], None if rest is None else (rest[0], rest[1].clone()))
        self._seen = [*self._seen[:-1], fresh] if again else [*self._seen[-1:], fresh]
        self._full_steps += 1
        self.skipped, self.cost = 0, 0.0

    def forecast(self, index: int, sample: Tensor) -> Tensor:
        """Return the prediction that a skipped step uses, and count the step.

        With full steps at times `a < b`, time `t` uses `y_b + (t - b) / (b - a) (f_m dm + f_d dd) - w e_b`. There `dm`
        is the change `y_b - y_a` of the mean of a picture's copies, and `dd` is each copy's own change beyond it, 0
        without guidance.

        The shares are `f_m = 0.9 - 1.2 k` and `f_d = 0.5 - 0.8 k`. There `-k` is the cosine between the guided change
        `y_b - y_a` and the one before it, and 0 where that cosine is positive. Under solvers that add noise both are
        `0.7 - 0.5 k^2`.

        The error `e_b` is that of the forecast for `b`. Its weight is `w = 0.5 (2 c - 1)`, where `-c` is the cosine
        between this error and the one before, and 0 where `c < 0.5`.

        Time is `-log(sigma)`, or the number of the call where noise levels rise again.

        Args:
            index: Number of the call.
            sample: What entered the denoiser, [B, ...].

        Returns:
            The prediction, in the shape of those before.
        """
        self.cost += self._cost(index)
        self.skipped += 1
        value = self._forecast(self.times[index])
        return self._prediction(index, sample, value)

    def _followed(self, value: Tensor, guide: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Return the shares of the coming change that forecasts extrapolate: the common part's and the rest's."""
        before, last = self._seen
        changes = (value - last.value, last.value - before.value)
        turned = _opposite(*((change if guide is None else guide(change)).flatten(1) for change in changes))
        if self.noisy:
            return (FADE - (FADE - _TURNED_NOISY) * turned.square()).expand(2, -1)
        return torch.stack([share - (share - _TURNED) * turned for share in (_COMMON, _APART)])

    def _measure(self, index: int, off: Tensor, guide: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Return the size of an error as it counts, and keep what later forecasts leave out of it."""
        guided = (off if guide is None else guide(off)).flatten(1)
        power = guided.square().mean(1)
        opposite = torch.zeros_like(power)
        if self._off is not None:
            before = (self._off if guide is None else guide(self._off)).flatten(1)
            opposite = _opposite(guided, before)
        share = _DAMPED * (opposite - _ALTERNATES).clamp(min=0) / (1 - _ALTERNATES)
        self._off, self._left = off, share.repeat(len(off) // len(share))
        scale = 1 / max(self.levels.sigmas[index], SMALLEST) if self.noisy else 1.0
        # Samples whose errors are not combined stand alone: the largest error counts.
        return (power * (1 - _TAKEN_BACK * opposite.square())).sqrt().max() * scale

    def _cost(self, index: int) -> float:
        sigma = self.levels.sigmas[index]
        alpha = 1 / math.sqrt(1 + min(sigma, _HIGHEST) ** 2)
        if self._measured is not None:
            self._error, self._measured = self._measured(), None
        last = self._seen[-1]
        growth = max(self.times[index] - last.time, 0.0) / self._distance
        growth *= (max(last.sigma, _OPEN) / max(sigma, _OPEN)) ** _RISE
        further = _NOISY if self.noisy else 1.0
        return float(further * self._moves[index] * alpha**_EARLY * self._error * growth)

    def _forecast(self, time: float) -> Tensor:
        last = self._seen[-1]
        if len(self._seen) < 2:
            return last.value
        before = self._seen[-2]
        ratio = (time - last.time) / (last.time - before.time)
        found = last.value + ratio * self._follow(last.value - before.value)
        if self._off is None or self._left is None:
            return found
        return found - _spread(self._left, found) * self._off

    def _follow(self, change: Tensor) -> Tensor:
        if self._shares is None:
            return FADE * change
        copies: Tensor = change.unflatten(0, (-1, self._shares.shape[1]))
        common = copies.mean(0, keepdim=True)
        whole, rest = (_spread(share, change) for share in self._shares)
        return (whole * common + rest * (copies - common)).flatten(0, 1)

    def _value(self, index: int, sample: Tensor, prediction: Tensor) -> Tensor:
        """Return the noise of a latent's prediction, or the denoised picture for a noisy solver; float32."""
        alpha, sigma = self._scales(index)
        prediction, sample = self.sign * prediction.float(), sample.float()
        if self.levels.kind == "epsilon":
            noise = prediction.clone()  # the original may be memory of a CUDA graph
        elif self.levels.kind == "v_prediction":
            noise = alpha * prediction + sigma * sample
        elif self.levels.kind == "flow_prediction":
            noise = sample + alpha * prediction
        else:
            noise = (sample - alpha * prediction) / sigma
        return (sample - sigma * noise) / alpha if self.noisy else noise

    def _prediction(self, index: int, sample: Tensor, value: Tensor) -> Tensor:
        alpha, sigma = self._scales(index)
        given = latent_part(sample.detach(), value)[0].float()
        noise = (given - alpha * value) / sigma if self.noisy else value
        if self.levels.kind == "v_prediction":
            noise = (noise - sigma * given) / alpha
        elif self.levels.kind == "flow_prediction":
            noise = (noise - given) / alpha
        elif self.levels.kind == "sample":
            noise = (given - sigma * noise) / alpha
        prediction = (self.sign * noise).to(sample.dtype)
        rest = self._seen[-1].rest if self._seen else None
        return prediction if rest is None else torch.cat([prediction, rest[1].to(prediction.dtype)], rest[0])

    def _scales(self, index: int) -> tuple[float, float]:
        """Return the factors of picture and noise in a sample at a call, neither of them 0."""
        sigma = self.levels.sigmas[index]
        flow = self.levels.kind == "flow_prediction"
        alpha = max(1 / (1 + sigma) if flow else 1 / math.sqrt(1 + sigma * sigma), 1e-4)
        return alpha, max(sigma * alpha, 1e-4)


def _spread(shares: Tensor, value: Tensor) -> Tensor:
    """Return a number for each sample in a shape that multiplies a value."""
    return shares.view(-1, *[1] * (value.ndim - 1))


def _opposite(one: Tensor, other: Tensor) -> Tensor:
    """Return minus the cosine between samples, [B, n], and 0 where it is positive."""
    sizes = (one.square().sum(1) * other.square().sum(1)).sqrt().clamp(min=_TINY)
    return (-(one * other).sum(1) / sizes).clamp(0, 1)
