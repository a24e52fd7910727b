"""The caption grammar: scene to words, words back to attributes, and the held-out evaluation prompts."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from agentsd.demo.scenes import COLOURS, PATTERNS, SHAPES, SIZES, TONES, Scene, sample_scene

RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PREFIXES = ("", "", "", "a picture of ", "an image of ", "a drawing of ")
PLACES = ("on", "on", "in front of")


@dataclasses.dataclass(frozen=True)
class CaptionObject:
    """What a caption says of one object; ``size`` is None where unsaid."""

    colour: str
    shape: str
    size: str | None


@dataclasses.dataclass(frozen=True)
class CaptionMeaning:
    """What a caption says; a field is None where the caption leaves it open."""

    objects: tuple[CaptionObject, ...]
    relation: str | None
    tone: str | None
    pattern: str | None

    @property
    def combos(self) -> frozenset[tuple[str, str]]:
        """The (colour, shape) pairs that the picture must show."""
        return frozenset((item.colour, item.shape) for item in self.objects)


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(scene: Scene, rng: np.random.Generator, *, complete: bool = False) -> str:
    """Describe a scene in words.

    Args:
        scene: The scene.
        rng: Draws paraphrases and omissions.
        complete: Say every attribute (evaluation); otherwise sizes, background and relation are at times unsaid.

    Returns:
        The caption, for instance "a red ring to the left of a small blue cross on a striped gray background".

    >>> scene = sample_scene(np.random.default_rng(3), count=1)
    >>> parse_caption(caption(scene, np.random.default_rng(0))).combos == {scene.objects[0].combo}
    True
    """
    phrases = []
    for item in scene.objects:
        says_size = complete or rng.random() < 0.85
        phrases.append(_with_article(f"{item.size} " * says_size + f"{item.colour} {item.shape}"))
    text = str(rng.choice(PREFIXES)) + phrases[0]
    if len(phrases) == 2:
        says_relation = complete or rng.random() < 0.9
        link = str(rng.choice(RELATION_PHRASES[str(scene.relation)])) if says_relation else "and"
        text += f" {link} {phrases[1]}"
    if complete or rng.random() < 0.9:
        says_pattern = scene.pattern != "plain" or rng.random() < 0.2
        ground = _with_article(f"{scene.pattern} " * says_pattern + f"{scene.tone} background")
        text += f" {rng.choice(PLACES)} {ground}"
    return text


_OBJECT = (
    rf"an? (?:(?P<size{{0}}>{'|'.join(SIZES)}) )?"
    rf"(?P<colour{{0}}>{'|'.join(COLOURS)}) (?P<shape{{0}}>{'|'.join(SHAPES)})"
)
_LINKS = "|".join(phrase for phrases in RELATION_PHRASES.values() for phrase in phrases)
_CAPTION = re.compile(
    rf"^(?:an? (?:picture|image|drawing) of )?{_OBJECT.format(1)}"
    rf"(?: (?P<link>{_LINKS}|and) {_OBJECT.format(2)})?"
    rf"(?: (?:on|in front of) an? (?:(?P<pattern>{'|'.join(PATTERNS)}) )?(?P<tone>{'|'.join(TONES)}) background)?$"
)


def parse_caption(text: str) -> CaptionMeaning:
    """Read a caption of the grammar back into attributes.

    Args:
        text: A caption as ``caption`` writes it.

    Returns:
        Its meaning; a named background without a pattern word is plain.

    Raises:
        ValueError: The text is not of the grammar.

    >>> parse_caption("a red circle under an orange ring").relation
    'below'
    """
    match = _CAPTION.match(text)
    if match is None:
        raise ValueError(
            f"text={text!r} is not of the demo grammar; write it like "
            "'a red ring to the left of a small blue cross on a checkered gray background'."
        )
    said = match.groupdict()
    objects = [CaptionObject(said["colour1"], said["shape1"], said["size1"])]
    relation = None
    if said["colour2"] is not None:
        objects.append(CaptionObject(said["colour2"], said["shape2"], said["size2"]))
        relation = next((name for name, phrases in RELATION_PHRASES.items() if said["link"] in phrases), None)
    pattern = said["pattern"] or ("plain" if said["tone"] is not None else None)
    return CaptionMeaning(tuple(objects), relation, said["tone"], pattern)


def grammar_words() -> tuple[str, ...]:
    """Every word that a caption can hold, in a fixed order.

    >>> "checkered" in grammar_words()
    True
    """
    phrases = [*SHAPES, *COLOURS, *SIZES, *TONES, *PATTERNS, *PREFIXES, *PLACES, "a an and background"]
    phrases += [phrase for group in RELATION_PHRASES.values() for phrase in group]
    return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


KNOWN = (
    f"the colours {', '.join(COLOURS)}, the shapes {', '.join(SHAPES)}, the sizes {', '.join(SIZES)}, and backgrounds "
    f"({', '.join(PATTERNS)}; {', '.join(TONES)})"
)


def unknown_words(prompt: str) -> list[str]:
    """Return the words of a prompt that no caption holds: the demo model does not know them.

    Args:
        prompt: The prompt.

    Example:
        >>> unknown_words("A red ring riding a horse")
        ['riding', 'horse']
    """
    known = set(grammar_words())
    return [word for word in dict.fromkeys(re.findall(r"[^\W_]+", prompt.lower())) if word not in known]


def held_out_scenes(number: int, seed: int = 0) -> list[tuple[str, Scene]]:
    """Evaluation prompts with a scene each that satisfies them: alternately one object and two.

    Args:
        number: How many, at least 1.
        seed: Chooses the prompts; prompt ``i`` depends on (seed, i) alone.

    Returns:
        Pairs (prompt, scene); no attribute combination among them occurs in training.

    Raises:
        ValueError: ``number`` is below 1.
    """
    if number < 1:
        raise ValueError(f"number={number} is below 1, the fewest prompts one can ask for; raise it.")
    result = []
    for index in range(number):
        rng = np.random.default_rng((seed, index, 2))
        scene = sample_scene(rng, count=1 + index % 2, held_out=True)
        result.append((caption(scene, rng, complete=True), scene))
    return result


def held_out_prompts(number: int, seed: int = 0) -> list[str]:
    """Evaluation prompts whose attribute combinations never occur in training.

    Even positions name one object, odd positions two with a relation.

    >>> held_out_prompts(2) == [text for text, _ in held_out_scenes(2)]
    True
    """
    return [text for text, _ in held_out_scenes(number, seed)]
