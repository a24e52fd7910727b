"""The weights of the FID network: where they lie, and whether they are the true ones."""

import hashlib
from pathlib import Path

import torch

from agentsd.evaluation.inception import FidInception

WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def load_inception(path: Path, *, sha256: str | None = WEIGHTS_SHA256) -> FidInception:
    """Load the FID network from the `.pth` of pytorch-fid or torch-fidelity (the same file under two names).

    Checked are the SHA-256 of the whole file, then name and shape of every tensor. The hash was collected from public
    projects that pin this file; its first 8 digits are those in the file's name.

    Args:
        path: The file, 95,628,359 bytes.
        sha256: What its SHA-256 must be, as 64 hexadecimal digits; `None` accepts any file of the right layout, whose
            distances are then not FID.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        ValueError: If the file cannot be read, or its hash or layout differs.

    Example:
        >>> load_inception(Path("absent.pth"))
        Traceback (most recent call last):
        ...
        ValueError: inception weights absent.pth: no such file; fetch https://github.com/...
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"inception weights {path}: no such file; {_how_to_get()}")
    if sha256 is not None and (found := file_sha256(path)) != sha256:
        raise ValueError(f"inception weights {path}: SHA-256 is {found}, not {sha256}; {_how_to_get()}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what zip, pickle and its own reader raise
        raise ValueError(f"inception weights {path}: no state that torch.load can read; {_how_to_get()}") from error
    network = FidInception()
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        problem = " ".join(str(error).split())[:300]
        raise ValueError(
            f"inception weights {path}: not the layout of the FID network ({problem}); {_how_to_get()}"
        ) from error
    return network


def find_weights() -> Path:
    """Return the weights in torch's cache, where torch-fidelity and pytorch-fid keep them.

    Raises:
        ValueError: If none are there; the message says where to get them.

    Example:
        >>> find_weights()  # doctest: +SKIP
        PosixPath('/home/me/.cache/torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth')
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    names = (WEIGHTS_URL.rpartition("/")[2], "pt_inception-2015-12-05-6726825d.pth")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"inception weights=None: neither {' nor '.join(names)} is in {folder}; {_how_to_get()}")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits.

    Example:
        >>> file_sha256(Path(__file__)) == file_sha256(Path(__file__))
        True
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _how_to_get() -> str:
    return f"fetch {WEIGHTS_URL} (SHA-256 {WEIGHTS_SHA256}) and give its path as --inception-weights."
