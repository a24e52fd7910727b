"""What is evaluated and how: one frozen description, and the named protocols that fill it in."""

import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from agentsd.evaluation.captions import Prompt, demo_prompts, load_captions
from agentsd.evaluation.protocols import (
    CLASS_TEMPLATE,
    CLASSES,
    COCO_2017,
    COCO_2017_SHA256,
    PICTURES_PER_CLASS,
    PROTOCOLS,
    TO_STOCK_ALONE,
)
from agentsd.pictures.settings import DEMO, Settings, with_model_defaults
from agentsd.system.numbers import is_whole

MODES = ("all", "quality", "timing")
FEATURES = ("auto", "inception", "demo")
CROPS = ("center", "stretch")
RESIZES = ("clean", "legacy")  # of the pictures that FID-Inception looks at
DEMO_NUM = 64
_LONGEST_WAIT = 10_000  # hours


@dataclass(frozen=True, kw_only=True)
class Options:
    """All options of an evaluation; `None` leaves a choice to the protocol, the model or the harness.

    Args:
        output: Run folder; a run goes on with what is there.
        captions: `"demo"`, or a file that `agentsd.evaluation.captions.load_captions` reads.
        class_names: File of class names, for the protocol `"paper"`.
        num: Number of prompts, the first of the file.
        reference: `"demo"`, a folder of pictures, a .npz file of statistics, or `None` for no distance.
        crop: How a reference picture gets the shape of the generated ones: `"center"` cuts, `"stretch"` distorts.
        model: Model, see `agentsd.pictures.settings.Settings`.
        steps: Denoising steps of stock.
        guidance_scale: Guidance.
        size: Side of the pictures in pixels.
        scheduler: Sampler.
        dtype: Arithmetic.
        device: Device, or `"auto"`.
        batch: Pictures at a time.
        seed: Seed of all noise; each prompt's own follows from it and the image id.
        arms: Descriptions, see `agentsd.evaluation.arms.parse_arm`.
        fewer_steps: Steps of the equal-time arms; empty measures them, `(0,)` leaves them out.
        mode: `"quality"`, `"timing"` or both, `"all"`.
        timing_prompts: Batches of `batch` pictures that every arm draws twice while it is timed.
        retime: Whether times that are there are measured anew.
        features: What distances are taken on: `"inception"` (FID and KID), `"demo"` (the demo's small network, for
            rendered scenes), or `"auto"`: demo for the rendered reference without weights, else Inception.
        inception_weights: FID-Inception weights; `None` looks in torch's cache.
        resize: How FID-Inception's input is resized, `"clean"` or `"legacy"`.
        lpips: Whether LPIPS to stock is measured (AlexNet).
        lpips_weights: torchvision's AlexNet; `None` looks in torch's cache.
        to_stock: Whether the distance of an arm's pictures from those of stock is measured ("FID to stock").
        clip_model: CLIP model, a folder or hub id.
        resamples: Bootstrap draws of the intervals; `None` is 1,000, or 200 where features are long.
        protocol: One of `PROTOCOLS`.
        merge: Run folders of other machines, whose pictures are taken over.
        wait_hours: How long processes wait for the slowest.

    Raises:
        ValueError: If a field is out of range, or contradicts the protocol.

    Example:
        >>> Options(output=Path("run")).captions
        'demo'
    """

    output: Path
    captions: str = DEMO
    class_names: Path | None = None
    num: int | None = None
    reference: str | None = None
    crop: str = "center"
    model: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    size: int | None = None
    scheduler: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    batch: int = 1
    seed: int = 0
    arms: tuple[str, ...] = ()
    fewer_steps: tuple[int, ...] = ()
    mode: str = "all"
    timing_prompts: int = 8
    retime: bool = False
    features: str = "auto"
    inception_weights: Path | None = None
    resize: str = "clean"
    lpips: bool = False
    lpips_weights: Path | None = None
    to_stock: bool = False
    clip_model: str | None = None
    resamples: int | None = None
    protocol: str | None = None
    merge: tuple[Path, ...] = ()
    wait_hours: float = 24.0

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("resize", RESIZES), ("crop", CROPS), ("features", FEATURES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}.")
        for name, least in (("num", 1), ("batch", 1), ("timing_prompts", 1), ("resamples", 20)):
            value = getattr(self, name)
            if value is not None and not is_whole(value, least):
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
        if self.size is not None and (not is_whole(self.size, 16) or self.size % 8):
            raise ValueError(f"size={self.size!r} must be a multiple of 8 of at least 16 pixels.")
        if not is_whole(self.seed, 0):
            raise ValueError(f"seed={self.seed!r} must be a whole number of at least 0.")
        if any(not 0 <= fewer <= 1000 for fewer in self.fewer_steps):
            raise ValueError(f"fewer_steps={self.fewer_steps} must be steps from 1 to 1000, or 0 for none.")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"output={str(self.output)!r} is a file; name a folder.")
        if not 0 < self.wait_hours <= _LONGEST_WAIT:
            raise ValueError(f"wait_hours={self.wait_hours!r} must be above 0 and at most {_LONGEST_WAIT}.")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol={self.protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
        if self.retime and self.mode == "quality":
            raise ValueError("retime=True measures times, which mode='quality' leaves out; leave one of them out.")
        if self.features == "demo" and self.inception_weights is not None:
            raise ValueError("features='demo' uses no inception_weights; leave one of them out.")
        for name, unset in (("features", "auto"), ("inception_weights", None)):
            if not self.measures_distances and getattr(self, name) != unset:
                raise ValueError(
                    f"{name}={str(getattr(self, name))!r} is for distances; give --reference or --to-stock, or leave "
                    "it out."
                )
        if self.lpips_weights is not None and not self.lpips and self.protocol not in TO_STOCK_ALONE:
            raise ValueError(f"lpips_weights={str(self.lpips_weights)!r} is for LPIPS; give --lpips, or leave it out.")
        if self.protocol == "paper" and self.captions != DEMO:
            raise ValueError(
                f"captions={self.captions!r} contradicts --protocol paper, whose prompts are made of --class-names; "
                "leave one out."
            )
        needs_reference = self.protocol is not None and self.protocol not in TO_STOCK_ALONE
        if needs_reference and self.reference is None and self.mode != "timing":
            raise ValueError(
                f"reference is missing: --protocol {self.protocol} is about FID; give --reference, or --mode timing."
            )
        if self.class_names is not None and self.protocol != "paper":
            raise ValueError(
                f"class_names={str(self.class_names)!r} belongs to --protocol paper; add it, or leave it out."
            )

    def completed(self) -> "Options":
        """Return the options with the protocol's choices filled in.

        Raises:
            ValueError: If an option says otherwise than the protocol.

        Example:
            >>> given = Options(output=Path("run"), protocol="paper", class_names=Path("names"), reference="val")
            >>> given.completed().scheduler
            'pndm'
        """
        if self.protocol is None:
            return self
        changes: dict[str, Any] = {}
        for name, value in PROTOCOLS[self.protocol].items():
            given = getattr(self, name)
            # Another copy of the model is allowed: the result file says so.
            if given is None or given is False:
                changes[name] = value
            elif given != value and name != "model":
                raise ValueError(
                    f"{name}={given!r} contradicts --protocol {self.protocol}, which has {value!r}; leave one out."
                )
        return replace(self, **changes)

    def settings(self) -> Settings:
        """Return what the pipeline is loaded and called with, without prompt and seed."""
        settings = Settings(
            prompt="",
            model=DEMO if self.model is None else self.model,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            height=self.size,
            width=self.size,
            seed=self.seed,
            scheduler=self.scheduler,
            dtype=self.dtype,
        )
        return with_model_defaults(settings)

    @property
    def measures_distances(self) -> bool:
        """Whether distances between sets of pictures are taken."""
        return self.reference is not None or self.to_stock or self.protocol in TO_STOCK_ALONE

    def chosen_features(self) -> str:
        """Return which features distances are taken on.

        Example:
            >>> Options(output=Path("run"), reference="demo").chosen_features()
            'demo'
        """
        if self.features != "auto":
            return self.features
        rendered = self.reference == DEMO or (self.reference is None and self.captions == DEMO)
        return "demo" if rendered and self.inception_weights is None else "inception"

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all options."""
        return [field.name for field in fields(cls)]


def prompts_of(options: Options) -> list[Prompt]:
    """Return the prompts of an evaluation.

    Args:
        options: Completed options.

    Returns:
        The prompts, with indices 0, 1, 2, ...

    Raises:
        ValueError: If they cannot be read, or are not those of the protocol.

    Example:
        >>> len(prompts_of(Options(output=Path("run"), num=3)))
        3
    """
    if options.protocol == "paper":
        if options.class_names is None:
            raise ValueError(
                "class_names is missing: --protocol paper draws two pictures of each of the 1,000 ImageNet classes, "
                "whose names are not bundled; give --class-names FILE (one a line, or a JSON list or object 0..999)."
            )
        return class_prompts(read_class_names(options.class_names))
    if options.captions == DEMO:
        if options.protocol is not None:
            raise ValueError(f"captions='demo' are not those of --protocol {options.protocol}; give --captions FILE.")
        return list(demo_prompts(DEMO_NUM if options.num is None else options.num, options.seed))
    path = Path(options.captions).expanduser()
    if options.protocol in COCO_2017:
        found = _sha256(path)
        if found != COCO_2017_SHA256:
            raise ValueError(
                f"captions={options.captions!r} has the SHA-256 {found}, but --protocol {options.protocol} needs "
                f"captions_val2017.json of COCO's annotations_trainval2017.zip, {COCO_2017_SHA256}."
            )
    return list(load_captions(path, num=options.num))


def read_class_names(path: Path) -> list[str]:
    """Return the 1,000 class names of a file: one a line, or a JSON list or object with the keys 0 to 999.

    Raises:
        ValueError: If the file cannot be read or does not hold 1,000 names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            data = json.loads(text)
            names = [data[str(i)] for i in range(len(data))] if isinstance(data, dict) else list(data)
        else:
            names = [line.strip() for line in text.splitlines() if line.strip()]
        "".join(map(str, names)).encode()  # half a surrogate pair, which JSON can write, is no text
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"class_names={str(path)!r} cannot be read: {error!r}.") from error
    if len(names) != CLASSES or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(
            f"class_names={str(path)!r} holds {len(names)} names; it must hold the {CLASSES} of ImageNet-1k."
        )
    return [" ".join(name.split()) for name in names]


def class_prompts(names: list[str]) -> list[Prompt]:
    """Return the prompts of the protocol `"paper"`: every class once, then every class again.

    Example:
        >>> class_prompts(["tench", "goldfish"])[3]
        Prompt(index=3, image_id='1-1', text='A high quality photograph of a goldfish.')
    """
    pairs = [(number, place, name) for number in range(PICTURES_PER_CLASS) for place, name in enumerate(names)]
    return [
        Prompt(index=index, image_id=f"{place}-{number}", text=CLASS_TEMPLATE.format(name))
        for index, (number, place, name) in enumerate(pairs)
    ]


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"captions={str(path)!r} cannot be read: {error}.") from error
