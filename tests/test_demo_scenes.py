"""The renderer, the scenes and the caption grammar of the demo."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from agentsd.demo import held_out_prompts, parse_caption
from agentsd.demo.captions import caption, grammar_words, held_out_scenes
from agentsd.demo.render import COLOUR_RGB, TONE_LEVEL, render, render_batch, signed_distance
from agentsd.demo.scenes import (
    COLOURS,
    COMBOS,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SIZES,
    TONES,
    Scene,
    SceneObject,
    combo_index,
    is_held_out,
    sample_scene,
    sample_scenes,
    scene_key,
)


def single(shape: str, colour: str = "red", tone: str = "white", pattern: str = "plain") -> Scene:
    item = SceneObject(colour, shape, "large", 0.5, 0.5, 0.25, 0.0)
    return Scene((item,), None, tone, pattern, 0.0, 0.0)


def test_rendering_is_deterministic():
    scenes = sample_scenes(4, seed=3)
    first, second = render_batch(scenes, size=64), render_batch(sample_scenes(4, seed=3), size=64)
    assert np.array_equal(first, second)
    assert len(np.unique(first.reshape(4, -1), axis=0)) == 4


def test_different_seeds_give_different_scenes():
    assert sample_scenes(3, seed=0) != sample_scenes(3, seed=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_body_of_an_object_has_its_colour(shape, colour):
    scene = single(shape, colour)
    picture = render(scene, size=128).astype(np.float32) / 255
    axis = (np.arange(128, dtype=np.float32) + 0.5) / 128
    x, y = np.meshgrid((axis - 0.5) / 0.25, (axis - 0.5) / 0.25)
    body = picture[signed_distance(shape, x, y) < -0.05].mean(axis=0)
    nearest = min(COLOUR_RGB, key=lambda name: np.linalg.norm(body - np.array(COLOUR_RGB[name])))
    assert nearest == colour


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_differ_where_they_should(shape):
    inside = {"circle": True, "square": True, "triangle": True, "ring": False, "cross": True}
    centre = float(signed_distance(shape, np.float32([0.0]), np.float32([0.0]))[0])
    assert (centre < 0) == inside[shape]
    assert float(signed_distance(shape, np.float32([1.6]), np.float32([1.6]))[0]) > 0


def test_tones_and_patterns_are_told_apart():
    levels = {}
    for tone in TONES:
        for pattern in PATTERNS:
            corner = render(single("circle", tone=tone, pattern=pattern), size=96)[:20].astype(np.float32)
            levels[tone, pattern] = (corner.mean() / 255, corner.std() / 255)
    for tone in TONES:
        assert abs(levels[tone, "plain"][0] - TONE_LEVEL[tone]) < 0.06
        assert levels[tone, "striped"][1] > 3 * levels[tone, "plain"][1]


def test_unknown_values_are_refused():
    with pytest.raises(ValueError, match="shape='star' is unknown"):
        signed_distance("star", np.zeros(1, np.float32), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="colour='pink' is unknown; choose one of red"):
        combo_index("pink", "ring")
    with pytest.raises(ValueError, match="size=8 is below 16"):
        render(single("ring"), size=8)
    with pytest.raises(ValueError, match="count=3 is not 1 or 2"):
        sample_scene(np.random.default_rng(0), count=3)
    with pytest.raises(ValueError, match="number=0 is below 1"):
        held_out_prompts(0)
    with pytest.raises(ValueError, match="not of the demo grammar"):
        parse_caption("a cat on a mat")


def test_two_objects_stand_as_related_without_overlap():
    for scene in sample_scenes(200, seed=11, count=2):
        first, second = scene.objects
        along = (second.x - first.x) if scene.relation in ("left", "right") else (second.y - first.y)
        assert (along > 0) == (scene.relation in ("left", "above"))
        assert abs(along) > max(first.radius, second.radius) * 2
        assert first.combo != second.combo


@pytest.mark.parametrize("complete", [True, False])
def test_captions_parse_back_to_the_scene(complete):
    for seed, scene in enumerate(sample_scenes(300, seed=5, held_out=None)):
        meaning = parse_caption(caption(scene, np.random.default_rng(seed), complete=complete))
        assert [(item.colour, item.shape) for item in meaning.objects] == [item.combo for item in scene.objects]
        for said, item in zip(meaning.objects, scene.objects, strict=True):
            assert said.size in ((item.size,) if complete else (None, item.size))
        assert meaning.relation in ((scene.relation,) if complete else (None, scene.relation))
        assert meaning.tone in ((scene.tone,) if complete else (None, scene.tone))
        assert meaning.pattern in ((scene.pattern,) if complete else (None, scene.pattern))


def test_every_attribute_occurs():
    scenes = sample_scenes(2000, seed=0)
    items = [item for scene in scenes for item in scene.objects]
    assert {item.combo for item in items} == set(COMBOS)
    assert {item.size for item in items} == set(SIZES)
    assert {scene.relation for scene in scenes} == {None, *RELATIONS}
    assert {(scene.tone, scene.pattern) for scene in scenes} == {(t, p) for t in TONES for p in PATTERNS}
    words = {word for seed, scene in enumerate(scenes) for word in caption(scene, np.random.default_rng(seed)).split()}
    assert words <= set(grammar_words())


def test_held_out_combinations_never_occur_in_training():
    training = {scene_key(scene) for scene in sample_scenes(3000, seed=5)}
    evaluation = [scene for _, scene in held_out_scenes(200)]
    assert all(is_held_out(scene) for scene in evaluation)
    assert not training & {scene_key(scene) for scene in evaluation}
    share = np.mean([is_held_out(scene) for scene in sample_scenes(2000, seed=1, held_out=None)])
    assert 0.10 < share < 0.20


def test_a_pair_told_from_either_side_has_one_key():
    scene = sample_scene(np.random.default_rng(2), count=2)
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}[scene.relation]
    turned = Scene(scene.objects[::-1], opposite, scene.tone, scene.pattern, 0.0, 0.0)
    assert scene_key(scene) == scene_key(turned)


def test_held_out_prompts_alternate_and_are_a_prefix():
    prompts = held_out_prompts(20, seed=4)
    assert prompts[:6] == held_out_prompts(6, seed=4)
    assert [len(parse_caption(prompt).objects) for prompt in prompts] == [1, 2] * 10
    assert prompts != held_out_prompts(20, seed=5)


def test_importing_the_demo_imports_no_diffusers():
    code = "import sys, agentsd.demo; sys.exit('diffusers' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
