"""What the command line shows: results on stdout, everything else on stderr, and nothing of other packages."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# Their loggers speak while they are imported, so the environment has to say it.
_SILENT = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
_OTHERS = r"(torch|diffusers|transformers|accelerate|huggingface_hub|peft|numpy|PIL|agentsd)(\.|$)"


def say(text: str) -> None:
    """Write a result to stdout.

    Example:
        >>> say("1.9x faster")
        1.9x faster
    """
    _write(sys.stdout, text)


def note(text: str) -> None:
    """Write what is no result to stderr: progress, warnings, errors.

    Example:
        >>> note("unet step at 512: 0 of 3 arms are measured")
    """
    _write(sys.stderr, text)


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"  # that of a pipe may lack a prompt's letters
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings and log lines of other packages; a warning of agentsd is one line on stderr.

    Example:
        >>> with quiet():
        ...     pass
    """
    before = {name: os.environ.get(name) for name in _SILENT}
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            # A warning of agentsd carries the module of the user's line, which is none of these.
            warnings.filterwarnings("ignore", module=_OTHERS)
            warnings.showwarning = _show
            yield
    finally:
        for name, value_before in before.items():
            if value_before is None:
                os.environ.pop(name, None)


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    note(f"warning: {' '.join(str(message).split())}")


def hide_loading_bars() -> None:
    """Hide the bars that diffusers and transformers draw while a model is loaded; downloads keep theirs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.hf_hub_utils.enable_progress_bars()  # disabled with those of transformers
