"""CLIP score: how well pictures fit their prompts, with the difference between two arms."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from agentsd.evaluation.inception import check_pictures

logger = logging.getLogger(__name__)

_BATCH = 16


@dataclass
class ClipScorer:
    """A CLIP model with what prepares its inputs.

    torchmetrics' `CLIPScore` fails with transformers 5, whose `get_*_features` return an object instead of a tensor.

    Attributes:
        name: Folder or hub id it was loaded from.
        model: A `transformers.CLIPModel` in evaluation mode.
        tokenizer: Its tokenizer.
        image_processor: Its image processor.

    Example:
        >>> scorer = load_clip("openai/clip-vit-base-patch16")  # doctest: +SKIP
        >>> scorer(pictures, ["a red ring"])  # doctest: +SKIP
        array([31.7])
    """

    name: str
    model: Any
    tokenizer: Any
    image_processor: Any

    def __call__(self, pictures: npt.NDArray[np.uint8], texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the CLIP score of each picture with its text: `100 max(cos(picture, text), 0)` (Hessel et al. 2021).

        The factor is 100, as in torchmetrics and MLPerf, instead of the paper's 2.5.

        Args:
            pictures: Pictures, [n, h, w, 3], uint8.
            texts: n prompts; those beyond CLIP's 77 tokens are cut, with a warning in the log.

        Returns:
            Scores, [n], in 0 to 100.

        Raises:
            ValueError: If the pictures are not [n, h, w, 3] uint8 or there are not n texts.
        """
        check_pictures(pictures)
        if len(texts) != len(pictures):
            raise ValueError(f"texts has {len(texts)} entries for {len(pictures)} pictures; give one for each picture.")
        if cut := self.truncated(texts):
            logger.warning("%d of %d prompts are longer than CLIP's context and are cut: %s", len(cut), len(texts), cut)
        starts = range(0, len(pictures), _BATCH)
        return np.concatenate([self._scores(pictures[i : i + _BATCH], list(texts[i : i + _BATCH])) for i in starts])

    def truncated(self, texts: Sequence[str]) -> list[int]:
        """Return the positions of texts that have more tokens than the model reads."""
        lengths = [len(tokens) for tokens in self.tokenizer(list(texts))["input_ids"]]
        return [i for i, length in enumerate(lengths) if length > self._context]

    @property
    def _context(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def _scores(self, pictures: npt.NDArray[np.uint8], texts: list[str]) -> npt.NDArray[np.float64]:
        device = self.model.device
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self._context, return_tensors="pt")
        pixels = self.image_processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last")
        text = _features(
            self.model.get_text_features(
                input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
            )
        )
        picture = _features(self.model.get_image_features(pixel_values=pixels["pixel_values"].to(device)))
        cosine = F.cosine_similarity(picture.double(), text.double())
        scores: npt.NDArray[np.float64] = (100 * cosine.clamp(min=0)).cpu().numpy()
        return scores


def load_clip(model: Path | str, *, device: torch.device | str = "cpu") -> ClipScorer:
    """Load a CLIP model for scoring, in float32.

    Args:
        model: Local folder, or an id on the Hugging Face hub, for instance `openai/clip-vit-base-patch16`.
        device: Where it runs.

    Returns:
        The scorer. Its image processor is Pillow's: scores do not depend on whether torchvision is installed.

    Raises:
        ValueError: If no complete CLIP model with tokenizer and image processor can be loaded from there.

    Example:
        >>> load_clip("/absent/clip")
        Traceback (most recent call last):
        ...
        ValueError: clip model '/absent/clip': ...
    """
    import transformers

    # transformers 4 knows Pillow's processor by the plain name.
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    name = str(model)
    try:
        network, found = transformers.CLIPModel.from_pretrained(name, output_loading_info=True)
        if found["missing_keys"]:  # transformers makes them random
            raise ValueError(f"it lacks the weights {', '.join(sorted(found['missing_keys']))}")
        return ClipScorer(
            name=name,
            model=network.float().eval().to(device),
            tokenizer=transformers.AutoTokenizer.from_pretrained(name),
            image_processor=processor.from_pretrained(name),
        )
    except Exception as error:  # whatever a foreign folder, cache or network can raise
        raise ValueError(
            f"clip model {name!r}: cannot be loaded ({' '.join(str(error).split())[:200]}); give a folder with a "
            "CLIPModel, its tokenizer and its image processor, or a hub id that can be downloaded."
        ) from error


def _features(output: Any) -> Tensor:
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
