"""Muon: momentum whose matrix updates are orthogonalised, which learns more from a step than Adam does.

Not `torch.optim.Muon`: it takes no convolutions, and it computes in bfloat16 always, which a CPU without units for it
emulates (ten times slower than here, where equal shapes are also computed together).
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import torch

from agentsd.system.precision import fast_dtype

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Map matrices to nearly orthogonal ones with the same singular vectors, by Newton-Schulz iteration.

    The singular values end between about 0.7 and 1.2 (https://kellerjordan.github.io/posts/muon).

    Args:
        matrices: (batch, rows, columns).
        steps: Iterations.

    Returns:
        The same shape, in bfloat16 where the CPU has it.

    >>> torch.manual_seed(0) and None
    >>> values = torch.linalg.svdvals(orthogonalise(torch.randn(1, 8, 20)).float())
    >>> bool((values > 0.6).all() and (values < 1.3).all())
    True
    """
    a, b, c = _COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices.to(fast_dtype("cpu"))
    x = x if wide else x.mT
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two or more dimensions, convolutions flattened over their inputs.

    The update's root mean square matches Adam's (a factor 0.2 times the root of the longer side), and learning
    rates compare.

    Args:
        parameters: Parameters of at least two dimensions.
        lr: Learning rate.
        momentum: Decay of the Nesterov momentum.
        weight_decay: Decoupled decay.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float = 2e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients; ``closure`` is not supported and must be None."""
        if closure is not None:
            raise ValueError("closure is given, but Muon evaluates none; call backward before step() instead.")
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[torch.nn.Parameter, torch.Tensor]]] = collections.defaultdict(list)
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient is None:
                    continue
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(gradient, 1 - group["momentum"])
                direction = gradient.lerp(state["momentum"], group["momentum"]).flatten(1)
                alike[direction.shape].append((parameter, direction))
            for shape, pairs in alike.items():
                updates = orthogonalise(torch.stack([direction for _, direction in pairs])).float()
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
