"""Scenes of the demo world: what is in them, how they are sampled, and which are held out for evaluation."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

SHAPES = ("circle", "square", "triangle", "ring", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = ("small", "large")
TONES = ("white", "gray", "black")
PATTERNS = ("plain", "striped", "checkered")
RELATIONS = ("left", "right", "above", "below")
COMBOS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

HELD_OUT_PERCENT = 15
JITTER = 0.02  # of positions, as a fraction of the picture's side, and of angles, in radians
_RADIUS = {1: {"small": 0.14, "large": 0.235}, 2: {"small": 0.125, "large": 0.19}}


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object; centre and radius are fractions of the picture's side, the angle is in radians."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def combo(self) -> tuple[str, str]:
        """The pair (colour, shape)."""
        return (self.colour, self.shape)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two objects on a background; ``relation`` says where the first lies seen from the second."""

    objects: tuple[SceneObject, ...]
    relation: str | None
    tone: str
    pattern: str
    phase_x: float
    phase_y: float


def _check(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field}={value!r} is unknown; choose one of {', '.join(allowed)}.")


def combo_index(colour: str, shape: str) -> int:
    """Position of a (colour, shape) pair among the 30 ``COMBOS``.

    >>> COMBOS[combo_index("blue", "ring")]
    ('blue', 'ring')
    """
    _check("colour", colour, COLOURS)
    _check("shape", shape, SHAPES)
    return COLOURS.index(colour) * len(SHAPES) + SHAPES.index(shape)


def scene_key(scene: Scene) -> str:
    """Name of the attribute combination by which a scene belongs to training or to evaluation.

    Single objects differ by colour, shape, size, tone and pattern; pairs by both (colour, shape)
    combinations and the relation: "A left of B" and "B right of A" share a key.
    """
    first = scene.objects[0]
    if len(scene.objects) == 1:
        return f"{first.colour} {first.shape} {first.size} {scene.tone} {scene.pattern}"
    second, relation = scene.objects[1], scene.relation
    if relation in ("right", "below"):
        first, second, relation = second, first, OPPOSITE[relation]
    return f"{first.colour} {first.shape} {relation} {second.colour} {second.shape}"


def is_held_out(scene: Scene) -> bool:
    """Whether a scene's attribute combination is reserved for evaluation (about 15 %), by a fixed hash."""
    return zlib.crc32(scene_key(scene).encode()) % 100 < HELD_OUT_PERCENT


def _place(rng: np.random.Generator, count: int, relation: str | None) -> list[tuple[float, float]]:
    # Little jitter on purpose: the less a caption leaves open, the fewer steps a diffusion model needs to learn it.
    def near(centre: float) -> float:
        return float(centre + rng.uniform(-JITTER, JITTER))

    if count == 1:
        return [(near(0.5), near(0.5))]
    low, high = near(0.27), near(0.73)
    if relation in ("right", "below"):
        low, high = high, low
    if relation in ("left", "right"):
        return [(low, near(0.5)), (high, near(0.5))]
    return [(near(0.5), low), (near(0.5), high)]


def sample_scene(rng: np.random.Generator, *, count: int | None = None, held_out: bool | None = False) -> Scene:
    """Draw a random scene.

    Args:
        rng: Source of all randomness.
        count: Number of objects, 1 or 2; None draws two with probability 0.6.
        held_out: False draws training combinations only, True evaluation combinations only, None either.

    Returns:
        The scene.

    Raises:
        ValueError: ``count`` is neither 1, 2 nor None.

    >>> scene = sample_scene(np.random.default_rng(0), count=2)
    >>> len(scene.objects), is_held_out(scene)
    (2, False)
    """
    if count not in (None, 1, 2):
        raise ValueError(f"count={count} is not 1 or 2, the numbers of objects a scene can have; use one.")
    while True:
        number = count if count is not None else (2 if rng.random() < 0.6 else 1)
        combos = rng.choice(len(COMBOS), size=number, replace=False)
        relation = str(rng.choice(RELATIONS)) if number == 2 else None
        objects = []
        for combo, (x, y) in zip(combos, _place(rng, number, relation), strict=True):
            colour, shape = COMBOS[int(combo)]
            size = str(rng.choice(SIZES))
            angle = float(rng.uniform(-JITTER, JITTER))
            objects.append(SceneObject(colour, shape, size, x, y, _RADIUS[number][size], angle))
        scene = Scene(
            objects=tuple(objects),
            relation=relation,
            tone=str(rng.choice(TONES)),
            pattern=str(rng.choice(PATTERNS)),
            phase_x=0.5,
            phase_y=0.5,
        )
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def sample_scenes(number: int, seed: int, *, count: int | None = None, held_out: bool | None = False) -> list[Scene]:
    """Draw ``number`` scenes from an explicit seed; scene ``i`` depends on (seed, i) alone.

    >>> sample_scenes(3, seed=1)[2] == sample_scenes(5, seed=1)[2]
    True
    """
    return [
        sample_scene(np.random.default_rng((seed, index)), count=count, held_out=held_out) for index in range(number)
    ]
