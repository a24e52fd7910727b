"""Signed-distance-function renderer of the demo scenes: shaded, bevelled objects with soft shadows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from agentsd.demo.scenes import Scene, SceneObject

FloatArray = npt.NDArray[np.floating]  # float32 throughout; numpy's stubs do not follow

COLOUR_RGB: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.09, 0.10),
    "orange": (1.00, 0.52, 0.04),
    "yellow": (0.98, 0.90, 0.16),
    "green": (0.10, 0.66, 0.22),
    "blue": (0.12, 0.28, 0.92),
    "purple": (0.58, 0.16, 0.78),
}
TONE_LEVEL: dict[str, float] = {"white": 0.90, "gray": 0.56, "black": 0.16}
TILE_FRACTION = 1 / 6  # 43 pixels of 256: wide enough for the coarsest (16 x 16) training grid to resolve

_LIGHT = np.array([-0.48, -0.60, 0.64], dtype=np.float32)  # from the top left, towards the viewer
_HALF_VECTOR = _LIGHT + np.array([0, 0, 1], dtype=np.float32)
_HALF_VECTOR /= np.linalg.norm(_HALF_VECTOR)


def _box(x: FloatArray, y: FloatArray, half_width: float, half_height: float) -> FloatArray:
    across = np.abs(x) - half_width
    down = np.abs(y) - half_height
    outside = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(down, 0) ** 2)
    result: FloatArray = outside + np.minimum(np.maximum(across, down), 0)
    return result


def _triangle(x: FloatArray, y: FloatArray) -> FloatArray:
    """Equilateral triangle, apex up (image y points down), circumradius 1."""
    root3 = np.float32(np.sqrt(3.0))
    # The maximum of the three edge distances is exact inside and a bound outside: enough for edges and shadows.
    return np.maximum(np.abs(x) * (root3 / 2) - y * 0.5, y) - 0.5


def signed_distance(shape: str, x: FloatArray, y: FloatArray) -> FloatArray:
    """Signed distance to a shape of unit radius, negative inside.

    Args:
        shape: One of ``agentsd.demo.scenes.SHAPES``.
        x: Horizontal coordinates in units of the radius, any shape of array.
        y: Vertical coordinates, down positive, same shape as ``x``.

    Returns:
        Distances in units of the radius.

    Raises:
        ValueError: The shape is unknown.

    >>> float(signed_distance("circle", np.float32([2.0]), np.float32([0.0]))[0])
    1.0
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - 1
    if shape == "square":
        return _box(x, y, 0.78, 0.78) - 0.06
    if shape == "triangle":
        return _triangle(x / 1.12, (y - 0.16) / 1.12) * 1.12 - 0.04
    if shape == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.73) - 0.27
    if shape == "cross":
        return np.minimum(_box(x, y, 0.94, 0.27), _box(x, y, 0.27, 0.94)) - 0.05
    raise ValueError(f"shape={shape!r} is unknown; choose circle, square, triangle, ring or cross.")


def _pixel_grid(size: int) -> tuple[FloatArray, FloatArray]:
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.meshgrid(centres, centres, indexing="xy")


def _background(scene: Scene, grid: tuple[FloatArray, FloatArray]) -> FloatArray:
    x, y = grid
    tone = TONE_LEVEL[scene.tone]
    level = tone + 0.05 * (0.5 - (0.4 * x + 0.6 * y))
    if scene.pattern != "plain":
        size = x.shape[0]
        sharpness = size / 2.0  # edges one to two pixels wide: no pattern may alias
        wave_x = np.clip(np.sin(np.pi * (x / TILE_FRACTION + scene.phase_x)) * sharpness * 0.1, -1, 1)
        wave = wave_x
        if scene.pattern == "checkered":
            wave = wave_x * np.clip(np.sin(np.pi * (y / TILE_FRACTION + scene.phase_y)) * sharpness * 0.1, -1, 1)
        level = level + 0.075 * wave
    return np.repeat(np.clip(level, 0, 1)[..., None], 3, axis=-1).astype(np.float32)


def _draw(image: FloatArray, item: SceneObject, grid: tuple[FloatArray, FloatArray]) -> None:
    size = image.shape[0]
    reach = 1.3 * item.radius + 0.1  # object and shadow; the rest of the picture stays as it is
    rows = slice(max(0, int((item.y - reach) * size)), int((item.y + reach) * size) + 1)
    columns = slice(max(0, int((item.x - reach) * size)), int((item.x + reach) * size) + 1)
    image = image[rows, columns]
    x, y = grid[0][rows, columns], grid[1][rows, columns]
    cos, sin = np.float32(np.cos(item.angle)), np.float32(np.sin(item.angle))

    def distance(shift_x: float, shift_y: float) -> FloatArray:
        dx, dy = (x - (item.x + shift_x)) / item.radius, (y - (item.y + shift_y)) / item.radius
        return signed_distance(item.shape, cos * dx + sin * dy, cos * dy - sin * dx) * item.radius

    shadow = np.clip((0.035 - distance(0.026, 0.034)) / 0.06, 0, 1)
    image *= (1 - 0.5 * shadow * shadow * (3 - 2 * shadow))[..., None]

    dist = distance(0.0, 0.0)
    slope_y, slope_x = np.gradient(dist * size)
    length = np.sqrt(slope_x**2 + slope_y**2) + 1e-6
    # The bevel ends before the middle of a ring's tube or a cross's arm, where the slope would flip sign.
    depth = np.clip(-dist / min(0.045, 0.24 * item.radius), 0, 1)
    tilt = 1 - depth
    normal_x, normal_y = slope_x / length * tilt, slope_y / length * tilt
    normal_z = np.sqrt(np.maximum(1 - tilt * tilt, 0))
    lambert = np.maximum(normal_x * _LIGHT[0] + normal_y * _LIGHT[1] + normal_z * _LIGHT[2], 0)
    gloss = np.maximum(normal_x * _HALF_VECTOR[0] + normal_y * _HALF_VECTOR[1] + normal_z * _HALF_VECTOR[2], 0) ** 24
    # A slight sheen across the face leaves texture that a lossy accelerator could destroy.
    sheen = 0.10 * (item.x - x + item.y - y) / item.radius
    shade = 0.42 + 0.78 * lambert + np.clip(sheen, -0.12, 0.12)
    colour = np.asarray(COLOUR_RGB[item.colour], dtype=np.float32)
    face = colour * shade[..., None] + 0.38 * gloss[..., None]
    cover = np.clip(0.5 - dist * size, 0, 1)[..., None]
    image *= 1 - cover
    image += cover * np.clip(face, 0, 1)


def render(scene: Scene, size: int = 256) -> npt.NDArray[np.uint8]:
    """Render a scene as an RGB picture, deterministically.

    Args:
        scene: The scene.
        size: Width and height in pixels, at least 16.

    Returns:
        Array (size, size, 3), uint8.

    Raises:
        ValueError: ``size`` is below 16.

    >>> from agentsd.demo.scenes import sample_scene
    >>> render(sample_scene(np.random.default_rng(0)), size=32).shape
    (32, 32, 3)
    """
    if size < 16:
        raise ValueError(f"size={size} is below 16, the least that shows a shape; raise it.")
    grid = _pixel_grid(size)
    image = _background(scene, grid)
    for item in scene.objects:
        _draw(image, item, grid)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def render_batch(scenes: list[Scene], size: int = 256) -> npt.NDArray[np.uint8]:
    """Render scenes into one array (n, size, size, 3), uint8.

    >>> render_batch([], size=32).shape
    (0, 32, 32, 3)
    """
    if not scenes:
        return np.zeros((0, size, size, 3), dtype=np.uint8)
    return np.stack([render(scene, size) for scene in scenes])
