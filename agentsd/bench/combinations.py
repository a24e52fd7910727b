"""The processes and solvers under which the demo model is measured."""

from typing import Any

from agentsd.bench.solvers import KARRAS

# Name -> process, scheduler, its settings, steps, guidance.
COMBINATIONS: dict[str, tuple[str, str, dict[str, Any], int, float]] = {
    "sd15, PNDM, 50": ("sd15", "PNDMScheduler", {}, 50, 7.5),
    "sd15, DDIM, 50": ("sd15", "DDIMScheduler", {"clip_sample": False}, 50, 7.5),
    "sd15, DPM++ 2M Karras, 25": ("sd15", "DPMSolverMultistepScheduler", KARRAS, 25, 7.5),
    "sd15, DPM++ 2M Karras, 20": ("sd15", "DPMSolverMultistepScheduler", KARRAS, 20, 7.5),
    "sd15, DPM++ 2M SDE Karras, 25": (
        "sd15", "DPMSolverMultistepScheduler", {**KARRAS, "algorithm_type": "sde-dpmsolver++"}, 25, 7.5,
    ),
    "sdxl, Euler, 30": ("sdxl", "EulerDiscreteScheduler", {}, 30, 7.5),
    "sd15, Euler ancestral, 30": ("sd15", "EulerAncestralDiscreteScheduler", {}, 30, 7.5),
    "sd15, UniPC, 20": ("sd15", "UniPCMultistepScheduler", {}, 20, 7.5),
    "sd15, Heun, 20": ("sd15", "HeunDiscreteScheduler", {}, 20, 7.5),
    "sd15, LCM, 8": ("sd15", "LCMScheduler", {}, 8, 1.0),
    "own, DDIM, 50": ("own", "DDIMScheduler", {}, 50, 4.0),
    "own, DDIM, 20": ("own", "DDIMScheduler", {}, 20, 4.0),
    "own, DPM++ 2M, 20": ("own", "DPMSolverMultistepScheduler", {}, 20, 4.0),
    "sd21-v, DDIM, 50": ("sd21-v", "DDIMScheduler", {"clip_sample": False}, 50, 7.5),
    "zero-snr, DDIM, 50": ("zero-snr", "DDIMScheduler", {}, 50, 7.5),
    "flow, Euler, 28": ("flow", "FlowMatchScheduler", {}, 28, 7.5),
    "sd15, DPM++ 2M Karras, 25, guidance 4": ("sd15", "DPMSolverMultistepScheduler", KARRAS, 25, 4.0),
    "sd15, DPM++ 2M Karras, 20, guidance 4": ("sd15", "DPMSolverMultistepScheduler", KARRAS, 20, 4.0),
    "sd15, UniPC, 20, guidance 4": ("sd15", "UniPCMultistepScheduler", {}, 20, 4.0),
    "sd15, DDIM, 50, guidance 4": ("sd15", "DDIMScheduler", {"clip_sample": False}, 50, 4.0),
    "sdxl, Euler, 30, guidance 4": ("sdxl", "EulerDiscreteScheduler", {}, 30, 4.0),
}  # fmt: skip
