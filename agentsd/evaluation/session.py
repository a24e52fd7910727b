"""What one process of an evaluation knows, and what would fail after hours is refused before."""

import gc
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from agentsd.bench.lpips import Lpips
from agentsd.evaluation import measures
from agentsd.evaluation.arms import EvaluationArm, base_arms
from agentsd.evaluation.drawing import Painter
from agentsd.evaluation.features import FeatureExtractor
from agentsd.evaluation.manifest import digest
from agentsd.evaluation.options import Options, prompts_of
from agentsd.evaluation.processes import Group
from agentsd.evaluation.reference import Reference, check_source, make_reference
from agentsd.evaluation.store import Store
from agentsd.pictures.loading import choose_device, load_pipeline
from agentsd.pictures.settings import DEMO

logger = logging.getLogger(__name__)


class Session:
    """What one process of an evaluation knows: options, prompts, pipeline, arms, folder, networks.

    Args:
        options: What to evaluate.
        group: The processes.

    Raises:
        ValueError: If an option cannot be met; nothing is generated then.
    """

    def __init__(self, options: Options, group: Group) -> None:
        if options.mode == "timing" and group.world > 1:
            raise ValueError(f"mode='timing' measures one process alone; start one, not {group.world}.")
        self.options = options
        self.group = group
        self.prompts = prompts_of(options)
        if options.reference is not None:
            check_source(options.reference)  # before any weights are loaded or asked for
        device = options.device
        if device == "auto" and torch.cuda.is_available() and group.world > 1:
            device = f"cuda:{group.local_rank}"
        settings = options.settings()
        self.pipe = load_pipeline(settings, choose_device(device))
        if getattr(self.pipe, "unet", None) is None:
            raise ValueError(
                f"model={settings.model!r} is a {type(self.pipe).__name__}, which has no UNet; an evaluation needs one."
            )
        self.painter = Painter(self.pipe, self.prompts, settings)
        self.arms = base_arms(options.arms, self.painter.steps)
        if any(fewer >= self.painter.steps for fewer in options.fewer_steps):
            raise ValueError(
                f"fewer_steps={options.fewer_steps} must lie below the {self.painter.steps} steps of stock; "
                "give fewer, or 0 for none."
            )
        self.no_faster: list[str] = []
        self.store = Store(options.output)
        self.config = self.painter.config(options.batch)
        cut = self.painter.cut_prompts()
        if cut and group.first:
            logger.warning(
                "%d of %d prompts are longer than the model's text encoder reads and are cut, image ids %s",
                len(cut), self.number, ", ".join(map(str, cut)),
            )  # fmt: skip
        self.reference: Reference | None = None
        self.extractor: FeatureExtractor | None = None
        self.clip: measures.Clip | None = None
        self.lpips: Lpips | None = None
        # Times alone are reported beside the figures of the pictures that are there.
        if options.mode != "timing" or self.store.has_measures:
            self._prepare_measures()

    def _prepare_measures(self) -> None:
        """Load what measures; what would fail after all pictures are generated is refused here."""
        options, size = self.options, self.painter.size
        if options.lpips:
            self.lpips = measures.make_lpips(options.lpips_weights)
        if options.reference is not None:
            self.reference = make_reference(options.reference, self.prompts, size, crop=options.crop, seed=options.seed)
        if options.measures_distances:
            self.extractor = measures.make_extractor(
                options.chosen_features(), options.inception_weights, options.resize, self.pipe.device
            )
            measures.check_extractor(self.extractor, size)
        if self.reference is not None and self.extractor is not None:
            measures.check_reference(self.reference, self.extractor, self.number)
        if options.clip_model is not None:
            self.clip = measures.make_clip(options.clip_model, self.pipe.device)

    @property
    def number(self) -> int:
        """How many pictures an arm has."""
        return len(self.prompts)

    @property
    def demo_captions(self) -> bool:
        """Whether the captions are of the demo's grammar, whose pictures can be marked right or wrong."""
        return self.options.captions == DEMO and self.options.protocol is None

    @cached_property
    def reference_store(self) -> Store:
        """Measures of the reference, apart from those of the pictures: they serve other runs of this folder too."""
        config = {} if self.reference is None else self.reference.config
        return Store(self.store.folder / "reference" / digest(config)[:12])

    def about(self) -> dict[str, Any]:
        """What is worth telling of the run but decides no picture."""
        return {
            "model": self.options.settings().model,
            "captions": "ImageNet classes" if self.options.protocol == "paper" else self.options.captions,
            "unet_parameters": sum(value.numel() for value in self.pipe.unet.parameters()),
            "demo_model": self.options.settings().model == DEMO,
            "demo_captions": self.demo_captions,
            "paired": self.reference is None or self.reference.paired,
        }

    def record(self, arm: EvaluationArm, index: int) -> dict[str, Any]:
        """Return what stands inside a picture's file."""
        return {
            "arm_sha256": digest(self.arm_config(arm)),
            "index": index,
            "image_id": str(self.prompts[index].image_id),
            "seed": self.painter.seed(index, arm.noise),
        }

    def arm_path(self, arm: EvaluationArm) -> Path:
        """Return the file that says what an arm's pictures were generated with."""
        return self.store.arm_folder(arm.name) / "arm.json"

    def arm_config(self, arm: EvaluationArm) -> dict[str, Any]:
        """Return everything that decides an arm's pictures."""
        return arm.to_dict() | {"manifest_sha256": digest(self.config)}

    @property
    def timed_batch(self) -> int:
        """How many pictures are measured at a time: as many as are generated at a time."""
        return min(self.options.batch, self.number)

    def draw_timed(self, arm: EvaluationArm, places: Sequence[int]) -> None:
        """Draw a batch whose pictures nobody keeps."""
        with torch.inference_mode():
            self.painter.draw(arm, places, keep=False)

    def drop_networks(self) -> None:
        """Drop the networks of the metrics: everything is measured, and they would count in every arm's memory."""
        if self.extractor is not None:
            self.extractor = measures.without_network(self.extractor)
        if self.clip is not None:
            self.clip = self.clip.without_network()
        gc.collect()
