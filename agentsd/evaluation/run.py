"""An evaluation from start to end: draw what is missing, measure, time, report; any part may be done already."""

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from agentsd.evaluation import measures
from agentsd.evaluation.arms import STOCK, EvaluationArm, base_arms, no_faster, with_equal_time
from agentsd.evaluation.drawing import Painter
from agentsd.evaluation.features import FeatureExtractor
from agentsd.evaluation.manifest import claim, differing, digest, told
from agentsd.evaluation.options import Options, prompts_of
from agentsd.evaluation.processes import Group, process_group
from agentsd.evaluation.reference import Reference, make_reference
from agentsd.evaluation.report import write_report
from agentsd.evaluation.results import SCHEMA_VERSION, Real, Rows, arm_results, speed_figures, stamps
from agentsd.evaluation.store import Store, UnfinishedError, read_json, write_bytes, write_json
from agentsd.evaluation.timing import LAYOUT, TimingPlan, equal_time_steps, time_arms
from agentsd.pictures.generate import DEMO, choose_device, load_pipeline
from agentsd.system.writing import sweep

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_REAL = "real"
_LOG_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What an evaluation wrote.

    Attributes:
        folder: The run folder.
        results: Content of `results.json`; `None` in processes other than the first.
    """

    folder: Path
    results: dict[str, Any] | None


def evaluate(options: Options) -> Outcome:
    """Evaluate stock, its control, the arms asked for, and stock of equal time; see `docs/evaluation.md`.

    May be stopped at any moment and started again, by as many processes as at first or others: finished pictures
    stay, and the results are the same.

    Args:
        options: What to evaluate.

    Returns:
        What was written.

    Raises:
        ValueError: If an option is bad, or the folder holds a run of other settings.
        UnfinishedError: If the disk is full or a process died; start again to go on.
    """
    with process_group(wait_hours=options.wait_hours) as group:
        run: _Run = group.together(lambda: _Run(options.completed(), group))
        run.claim()
        run.choose_arms()
        if options.mode != "timing":
            run.generate()
            run.measure()
        if not group.first:
            return Outcome(options.output, None)
        timing = run.time()
        return Outcome(options.output, run.report(timing))


class _Run:
    """One evaluation in one process; methods that exchange something are called by all processes in turn."""

    def __init__(self, options: Options, group: Group) -> None:
        if options.mode == "timing" and group.world > 1:
            raise ValueError(f"mode='timing' measures one process alone; start one, not {group.world}.")
        self.options = options
        self.group = group
        self.prompts = prompts_of(options)
        device = options.device
        if device == "auto" and torch.cuda.is_available() and group.world > 1:
            device = f"cuda:{group.local_rank}"
        settings = options.settings()
        self.pipe = load_pipeline(settings, choose_device(device))
        self.painter = Painter(self.pipe, self.prompts, settings)
        self.arms = base_arms(options.arms, self.painter.steps)
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
        # Times alone are reported beside the figures of the pictures that are there.
        if options.mode != "timing" or self.store.has_measures:
            self._prepare_measures()

    def _prepare_measures(self) -> None:
        """Load what measures, and refuse here what would fail when all pictures are drawn."""
        options, size = self.options, self.painter.size
        if options.reference is not None:
            self.extractor = measures.make_extractor(
                options.chosen_features(), options.inception_weights, options.resize, self.pipe.device
            )
            measures.check_extractor(self.extractor, size)
            self.reference = make_reference(options.reference, self.prompts, size, crop=options.crop, seed=options.seed)
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

    # --- the folder ---

    def claim(self) -> None:
        """Check that all processes and the folder agree on what is drawn; take over other folders."""
        mine = self._agreed()
        for rank, other in enumerate(self.group.gather(mine)):
            keys = differing(mine, other)
            if keys:
                raise ValueError(
                    f"process {rank} differs from process {self.group.rank} in {told(keys, 'here', 'there')}; give all "
                    "processes the same options, weights and versions."
                )
        self.group.together(self._claim_folder)
        self.group.together(lambda: self._merge() if self.group.first else None)

    def _agreed(self) -> dict[str, Any]:
        """Return what all processes must share: they take parts of one list of work."""
        return self.config | {
            "mode": self.options.mode,
            "arm": {arm.name: arm.to_dict() for arm in self.arms},
            "fewer_steps": list(self.options.fewer_steps),
            "attributes": self.demo_captions,
            "reference": None if self.reference is None else self.reference.config,
            "features": None if self.extractor is None else measures.extractor_config(self.extractor),
            "clip": None if self.clip is None else self.clip.config,
        }

    def _claim_folder(self) -> None:
        claim(self.store.folder / _MANIFEST, self.config, self.about())
        swept = sweep(self.store.folder)
        if swept:
            logger.info("removed %d partial files of a run that was killed", swept)

    def _merge(self) -> None:
        for folder in self.options.merge:
            manifest = read_json(folder / _MANIFEST)
            if manifest is None:
                raise ValueError(f"merge={str(folder)!r} holds no {_MANIFEST}; give the run folder of another machine.")
            keys = differing(self.config, manifest.get("config", {}))
            if keys:
                raise ValueError(f"merge={str(folder)!r} was made with other settings: {', '.join(keys)} differ.")
            taken = 0
            for source in sorted((folder / "arms").rglob("*.*")):
                target = self.store.folder / source.relative_to(folder)
                # Latents sort after pictures; a picture counts only with its latents, so a kill between is repaired.
                if (
                    source.suffix in (".png", ".npz", ".json")
                    and not source.name.startswith(".")
                    and not target.exists()
                ):
                    write_bytes(target, source.read_bytes())
                    taken += 1
            steps = folder / "equal_time.json"
            if steps.exists() and not (self.store.folder / steps.name).exists():
                write_json(self.store.folder / steps.name, read_json(steps) or {})
            logger.info("took %d files over from %s", taken, folder)

    def choose_arms(self) -> None:
        """Add the arms of equal time, and check each arm's folder."""
        fewer = self.group.share(self.group.together(lambda: self._fewer_steps() if self.group.first else {}))
        self.no_faster = no_faster(self.arms, fewer)
        self.arms = with_equal_time(self.arms, fewer)
        if self.options.mode != "timing":
            self.group.together(self._claim_arms)

    def _claim_arms(self) -> None:
        for arm in self.arms:
            claim(self._arm_path(arm), self._arm_config(arm))

    def _arm_path(self, arm: EvaluationArm) -> Path:
        return self.store.arm_folder(arm.name) / "arm.json"

    def _arm_config(self, arm: EvaluationArm) -> dict[str, Any]:
        return arm.to_dict() | {"manifest_sha256": digest(self.config)}

    def _fewer_steps(self) -> dict[int, list[str]]:
        candidates = [arm for arm in self.arms if arm.role == "candidate"]
        if self.options.fewer_steps:
            if any(not 0 <= fewer <= 1000 for fewer in self.options.fewer_steps):
                raise ValueError(f"fewer_steps={self.options.fewer_steps} must be steps from 1 to 1000, or 0 for none.")
            return {fewer: [] for fewer in self.options.fewer_steps if fewer}
        # Kept: a second start must not draw other arms because the machine was busier.
        path = self.store.folder / "equal_time.json"
        known: dict[str, int] = read_json(path) or {}
        names = {arm.name: digest(arm.to_dict()) for arm in candidates}
        unknown = [arm for arm in candidates if names[arm.name] not in known]
        if unknown:
            logger.info("measuring how many steps of stock take the time of %s", ", ".join(arm.name for arm in unknown))
            steps = equal_time_steps(self.pipe, [self.arms[0], *unknown], self._draw_timed, self.timed_batch)
            known |= {names[name]: fewer for name, fewer in steps.items()}
            write_json(path, known)
        found: dict[int, list[str]] = {}
        for name, key in names.items():
            found.setdefault(known[key], []).append(name)
        return found

    # --- pictures ---

    def record(self, arm: EvaluationArm, index: int) -> dict[str, Any]:
        """Return what stands inside a picture's file."""
        return {
            "arm_sha256": digest(self._arm_config(arm)),
            "index": index,
            "image_id": str(self.prompts[index].image_id),
            "seed": self.painter.seed(index, arm.noise),
        }

    def generate(self) -> None:
        """Draw what is missing in every process's folder, each process its share; the only exchange is at the ends."""
        missing = self._missing_everywhere()
        self.group.together(lambda: self._draw_missing(missing))
        lacking = sum(
            not self.store.picture_path(arm.name, index).exists() for arm in self.arms for index in range(self.number)
        )
        counts = self.group.gather(lacking)
        if any(counts):
            raise UnfinishedError(
                f"The pictures are drawn, but the folders of the processes lack {counts} of "
                f"{self.number * len(self.arms)}: they do not share output={str(self.store.folder)!r}. Copy the other "
                "machines' folders beside it and start once more on one of them with --merge FOLDER ..."
            )

    def _missing_everywhere(self) -> dict[str, set[int]]:
        began = time.monotonic()
        mine = {
            arm.name: {
                index
                for index in range(self.number)
                if not self.store.is_complete(arm.name, index, self.record(arm, index), self.painter.size)
            }
            for arm in self.arms
        }
        everyone = self.group.gather(mine)
        missing = {name: set.intersection(*(one[name] for one in everyone)) for name in mine}
        left = sum(map(len, missing.values()))
        logger.info(
            "%d of %d pictures are there (checked in %.0f s)",
            self.number * len(self.arms) - left, self.number * len(self.arms), time.monotonic() - began,
        )  # fmt: skip
        return missing

    def _draw_missing(self, missing: dict[str, set[int]]) -> None:
        # Whole batches at fixed places: a picture sees the same batch whoever draws it and however often a run was
        # killed, so not even its rounding depends on that.
        batch = self.options.batch
        blocks = [range(start, min(start + batch, self.number)) for start in range(0, self.number, batch)]
        tasks = [(arm, block) for arm in self.arms for block in blocks if not missing[arm.name].isdisjoint(block)]
        tasks = tasks[self.group.rank :: self.group.world]
        progress = _Progress(f"process {self.group.rank}: batches drawn", len(tasks))
        for arm, block in tasks:
            try:
                with torch.inference_mode(), arm.enter(self.pipe):
                    drawn = self.painter.draw(arm, block)
            except torch.OutOfMemoryError as error:
                raise ValueError(f"batch={batch} does not fit into the device's memory; lower it: {error}.") from error
            for index, one in zip(block, drawn, strict=True):
                if index in missing[arm.name]:
                    self.store.write_picture(arm.name, index, one.picture, one.latent, self.record(arm, index))
            progress.step()

    # --- measures ---

    def kinds(self) -> dict[str, tuple[str, measures.Measure]]:
        """Return what is measured on the arms' pictures: field of `Rows` or group to kind and measure."""
        found = {"likeness": (measures.LIKENESS, measures.likeness(self.store))}
        if self.extractor is not None:
            found["features"] = (
                measures.feature_kind(self.extractor),
                measures.feature_measure(self.store, self.extractor),
            )
        if self.clip is not None:
            found["clip"] = (self.clip.kind, measures.clip_measure(self.store, self.clip, self.prompts))
        if self.demo_captions:
            found["attributes"] = (measures.ATTRIBUTES, measures.attribute_measure(self.store, self.prompts))
        return found

    def measure(self) -> None:
        """Measure what is not measured yet, each process its share."""
        kinds = self.kinds()
        wanted = [(arm.name, *kind) for arm in self.arms for name, kind in kinds.items() if self._applies(arm, name)]

        def work() -> None:
            share = partial(measures.measure_all, rank=self.group.rank, world=self.group.world)
            share(self.store, wanted, self.number)
            if self.reference is not None and self.extractor is not None and self.reference.number:
                reference, extractor = self.reference, self.extractor
                real = [(_REAL, measures.feature_kind(extractor), measures.reference_measure(reference, extractor))]
                share(self.reference_store, real, reference.number)

        self.group.together(work)

    @staticmethod
    def _applies(arm: EvaluationArm, kind: str) -> bool:
        return kind != "likeness" or arm.name != STOCK

    def _rows(self) -> dict[str, Rows]:
        kinds = self.kinds()
        rows = {}
        for arm in self.arms:
            found: dict[str, Any] = {}
            for name, (kind, _) in kinds.items():
                if self._applies(arm, name):
                    found |= measures.read_all(self.store, arm.name, kind, self.number)
            rows[arm.name] = Rows(**found)
        return rows

    def _real(self) -> Real | None:
        if self.reference is None or self.extractor is None:
            return None
        if self.reference.moments is not None:
            return Real(moments=self.reference.moments, folder=self.reference_store.folder / "draws")
        features = measures.read_all(
            self.reference_store, _REAL, measures.feature_kind(self.extractor), self.reference.number
        )
        folder = self.reference_store.folder / "draws"
        return Real(features=features["features"], paired=self.reference.paired, folder=folder)

    def _figures(self) -> tuple[dict[str, Rows], Real | None]:
        """Return all measures; none if times alone are taken and they are not all there."""
        if self.options.mode != "timing":
            return self._rows(), self._real()
        try:
            if not self.store.has_measures:
                raise UnfinishedError("nothing was measured")
            for arm in self.arms:
                said = read_json(self._arm_path(arm)) or {}
                if said.get("sha256") != digest(self._arm_config(arm)):
                    raise UnfinishedError(f"arm {arm.name!r} was not drawn with these settings")
                if not all(self.store.picture_path(arm.name, index).exists() for index in range(self.number)):
                    raise UnfinishedError(f"arm {arm.name!r} lacks pictures")
            return self._rows(), self._real()
        except UnfinishedError as reason:
            logger.info("times only, without figures of pictures: %s", reason)
            self.reference = self.extractor = self.clip = None
            return {}, None

    # --- times ---

    @property
    def timed_batch(self) -> int:
        """How many pictures are drawn at a time, as while drawing."""
        return min(self.options.batch, self.number)

    def _draw_timed(self, arm: EvaluationArm, places: Sequence[int]) -> None:
        with torch.inference_mode():
            self.painter.draw(arm, places, keep=False)

    def time(self) -> dict[str, Any]:
        """Time the arms in this process alone, or return the times that are there."""
        path = self.store.folder / "timing.json"
        key = digest({"layout": LAYOUT, "config": self.config, "arms": {arm.name: arm.to_dict() for arm in self.arms}})
        plan = TimingPlan(prompts=self.options.timing_prompts, batch=self.timed_batch)
        there = read_json(path) or {}
        known = there.get("of") == key
        if self.options.mode == "quality":
            return there if known else {}
        if known and there["prompts"] == plan.prompts and not self.options.retime:
            logger.info("times are there: %d batches of %d", plan.prompts, plan.batch)
            return there
        logger.info("timing %d arms, %d batches of %d in the order ABBA", len(self.arms), plan.prompts, plan.batch)
        self._drop_networks()
        timing = {"of": key} | time_arms(self.pipe, self.arms, self._draw_timed, plan)
        write_json(path, timing)
        return timing

    def _drop_networks(self) -> None:
        """Drop the networks of the metrics: everything is measured, and they would count in every arm's memory."""
        if self.extractor is not None:
            self.extractor = measures.without_network(self.extractor)
        if self.clip is not None:
            self.clip = self.clip.without_network()
        gc.collect()

    # --- results ---

    def report(self, timing: dict[str, Any]) -> dict[str, Any]:
        """Compute the figures and write every artefact."""
        rows, real = self._figures()
        arms: dict[str, Any] = {}
        for arm in self.arms:
            if rows:
                logger.info("figures of %s", arm.name)
                found = arm_results(
                    arm, rows, real, self.extractor, resamples=self.options.resamples, seed=self.options.seed
                )
            else:
                found = {"role": arm.role, "steps": arm.steps, "settings": arm.to_dict(), "metrics": {}}
            speed = speed_figures(timing, arm.name)
            arms[arm.name] = found | ({} if speed is None else {"speed": speed})
        about = self.about()
        reference = None if self.reference is None else self.reference.config | {"paired": self.reference.paired}
        results = {
            "schema_version": SCHEMA_VERSION,
            "benchmark": "evaluation",
            "protocol": self.options.protocol,
            "number": self.number,
            "manifest": {"sha256": digest(self.config), "config": self.config},
            "about": about,
            "stamps": stamps(self.number, self.extractor, reference, about, arms, self.no_faster),
            "extractor": None if self.extractor is None else measures.extractor_config(self.extractor),
            "clip": None if self.clip is None else self.clip.config,
            "reference": reference,
            "arms": arms,
            "timing": {name: value for name, value in timing.items() if name not in ("arms", "of")} or None,
        }
        for stale in (*self.store.folder.glob("pareto.*"), *self.store.folder.glob("grid-*.png")):
            stale.unlink()  # not every report has them, and an old one would look as if it belonged to it
        write_report(self.store, results, self.prompts, rows, timing, self.painter)
        return results


class _Progress:
    """Logs how far a loop is, not more often than is readable."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._said = time.monotonic()

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said >= _LOG_EVERY or self._done == self._total:
            self._said = now
            left = (now - self._began) / self._done * (self._total - self._done)
            logger.info("%s: %d of %d, about %.0f s left", self._what, self._done, self._total, left)
