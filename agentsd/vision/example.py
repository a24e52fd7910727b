"""A small trained classifier of rendered scenes, to look into."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from agentsd.vision.configs import VisionConfig
from agentsd.vision.model import AgentTransformer

FILE = Path(__file__).with_name("example.safetensors")
CONFIG = VisionConfig(
    family="pvt",
    dims=(32, 64, 128),
    depths=(2, 2, 2),
    heads=(1, 2, 4),
    blocks=("AA", "AA", "AA"),
    agents=(9, 9, 9),
    mlp_ratios=(4, 4, 4),
    reductions=(1, 1, 1),
    image_size=(48, 48),
    drop_path=0.05,
)
LOGITS = 24  # what `scene_pictures` asks


def example_model() -> AgentTransformer:
    """Build the small classifier of rendered scenes with its trained weights; `scripts/train_vision.py` trained it.

    Returns:
        The model, in eval mode, for scenes of 48 x 48 pixels.

    Example:
        >>> from agentsd.vision.data import scene_pictures
        >>> from agentsd.vision.training import evaluate
        >>> evaluate(example_model(), scene_pictures(20, 48, seed=4, held_out=True))["mean"] > 0.9
        True
    """
    model = AgentTransformer(CONFIG, num_classes=LOGITS)
    model.load_state_dict({name: value.float() for name, value in load_file(FILE).items()})
    return model.eval()


def save_example(model: AgentTransformer, path: Path = FILE) -> None:
    """Write the weights of a model of this shape, in half precision.

    Args:
        model: The model.
        path: The file.
    """
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, path)
