"""The demo's tokenizer and text encoder, the latter pretrained to understand the caption grammar."""

from __future__ import annotations

import collections
import itertools
import json
import logging
import pathlib
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from agentsd.demo.captions import CaptionMeaning, CaptionObject, caption, grammar_words, parse_caption
from agentsd.demo.scenes import COLOURS, OPPOSITE, PATTERNS, RELATIONS, SHAPES, SIZES, TONES, sample_scene
from agentsd.system.precision import cpu_autocast

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

logger = logging.getLogger(__name__)

MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
_OBJECT_VALUES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}
_PLACES = ("first", "second", "centre", "left", "right", "above", "below")

# What the text encoder is trained to predict; class 0 of each is "unsaid". The places beside "first" and "second"
# bind each object to a side of the picture: the UNet need not find that out.
QUESTIONS: dict[str, tuple[str, ...]] = {
    f"{place} {field}": values for place in _PLACES for field, values in _OBJECT_VALUES.items()
} | {"relation": RELATIONS, "tone": TONES, "pattern": PATTERNS}


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges that make each word one token, most frequent pair first, ties in alphabetical order.

    >>> learn_merges(("red", "ring"))[:2]
    [('e', 'd</w>'), ('i', 'n')]
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while any(len(word) > 1 for word in pieces):
        counts = collections.Counter(pair for word in pieces for pair in itertools.pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for index, word in enumerate(pieces):
            joined: list[str] = []
            for piece in word:
                if joined and (joined[-1], piece) == best:
                    joined[-1] += piece
                else:
                    joined.append(piece)
            pieces[index] = joined
    return merges


def build_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer: CLIP's byte-level scheme, one token for each word of the grammar.

    Returns:
        The tokenizer; any text survives it, unknown words as bytes.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    merges = learn_merges(grammar_words())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def write_slow_tokenizer_files(folder: pathlib.Path) -> None:
    """Write vocab.json and merges.txt, which transformers 4 reads and transformers 5 no longer saves."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def build_text_encoder(tokenizer: CLIPTokenizer, hidden: int = 128, layers: int = 3, heads: int = 4) -> CLIPTextModel:
    """Build the untrained text encoder, initialised from torch's global generator."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=hidden,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Padded token ids (n, 77), int64, as StableDiffusionPipeline makes them."""
    encoded = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    ids: torch.Tensor = encoded.input_ids
    return ids


def answers(meaning: CaptionMeaning | None) -> list[int]:
    """Class of each of ``QUESTIONS`` for a caption's meaning; None (the empty caption) leaves all unsaid.

    >>> sum(answers(None))
    0
    """
    said: dict[str, str | None] = {}
    if meaning is not None:
        placed: dict[str, CaptionObject] = {"first": meaning.objects[0]}
        if len(meaning.objects) == 1:
            placed["centre"] = meaning.objects[0]
        else:
            placed["second"] = meaning.objects[1]
            if meaning.relation is not None:
                placed[meaning.relation] = meaning.objects[0]
                placed[OPPOSITE[meaning.relation]] = meaning.objects[1]
        said = {f"{place} {field}": getattr(item, field) for place, item in placed.items() for field in _OBJECT_VALUES}
        said |= {"relation": meaning.relation, "tone": meaning.tone, "pattern": meaning.pattern}
    result = []
    for question, values in QUESTIONS.items():
        answer = said.get(question)
        result.append(0 if answer is None else 1 + values.index(answer))
    return result


def _training_batch(rng: np.random.Generator, batch: int) -> tuple[list[str], torch.Tensor]:
    texts, targets = [], []
    for _ in range(batch):
        text = "" if rng.random() < 0.03 else caption(sample_scene(rng), rng)
        texts.append(text)
        targets.append(answers(parse_caption(text) if text else None))
    return texts, torch.tensor(targets)


def pretrain_text_encoder(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, steps: int, *, seed: int = 0, batch: int = 48, lr: float = 1e-3
) -> float:
    """Teach the text encoder the grammar by asking for attributes at the end token and at the padding after it.

    Linear answers at the padded positions give the UNet's cross-attention the caption's whole meaning at
    nearly every key. The linear heads are dropped afterwards.

    Args:
        encoder: The encoder, trained in place.
        tokenizer: Its tokenizer.
        steps: Optimiser steps.
        seed: Seed of captions, positions and heads.
        batch: Captions a step.
        lr: Peak learning rate.

    Returns:
        Share of questions answered rightly on the last 10 batches.
    """
    torch.manual_seed(seed + 5)
    sizes = [1 + len(values) for values in QUESTIONS.values()]
    heads = torch.nn.Linear(encoder.config.hidden_size, sum(sizes))
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=steps, pct_start=0.1)
    encoder.train()
    right: collections.deque[float] = collections.deque(maxlen=10)
    for step in range(steps):
        rng = np.random.default_rng((seed, 23, step))
        texts, targets = _training_batch(rng, batch)
        ids = token_ids(tokenizer, texts)
        with cpu_autocast():
            states = encoder(ids).last_hidden_state.float()
        end = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
        later = end + torch.from_numpy(rng.integers(0, MAX_TOKENS, size=batch)) % (MAX_TOKENS - end)
        rows = torch.arange(batch)
        asked = torch.cat([states[rows, end], states[rows, later]])
        wanted = torch.cat([targets, targets])
        groups = heads(asked).split(sizes, dim=1)
        loss = torch.stack([F.cross_entropy(group, wanted[:, i]) for i, group in enumerate(groups)]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        hits = torch.stack([group.argmax(dim=1) == wanted[:, i] for i, group in enumerate(groups)])
        right.append(hits.float().mean().item())
        if step % 100 == 0 or step == steps - 1:
            logger.info("text step %d/%d loss %.3f right %.4f", step, steps, loss.item(), right[-1])
    encoder.eval()
    return float(np.mean(right))
