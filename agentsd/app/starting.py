"""Starting the page: its folder, its address, and nothing that leaves this machine."""

import argparse
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentsd.app.options import is_loopback

_MOST_BYTES = "32mb"  # of a file that is opened
_MOST_WAITING = 16


def launch(
    model: str = "demo",
    *,
    device: str = "auto",
    dtype: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    output: Path = Path("outputs/app"),
    most_steps: int = 150,
    most_side: int = 1024,
    any_model: bool = False,
    browser: bool = False,
) -> tuple[Any, str]:
    """Start the page in the background.

    Args:
        model: The model that is shown first; on an open page the only one.
        device: Where it runs.
        dtype: Type of its weights; `None` is float32 on a CPU and float16 elsewhere.
        host: Address to bind to. Others than loopback make the page open to whoever reaches them.
        port: Port; 0 takes a free one.
        output: Folder of all that the page writes.
        most_steps: Most steps of a picture.
        most_side: Longest side of a picture in pixels.
        any_model: Whether visitors of an open page may choose a model, a folder of this machine included.
        browser: Whether to open a browser.

    Returns:
        The page (`close()` stops it), and its address.

    Raises:
        ImportError: If gradio is not installed.
        ValueError: If the device is not there, or the folder cannot be written.
    """
    folder = _own_folder(output)
    # Read while gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "temp")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("the page needs gradio; run pip install 'agentsd[app]'.") from error
    from agentsd.app.form import Limits
    from agentsd.app.handlers import Handlers
    from agentsd.app.page import CSS, build, theme
    from agentsd.app.studio import Studio
    from agentsd.pictures.loading import choose_device
    from agentsd.pictures.settings import default_dtype

    only = None if any_model or is_loopback(host) else model
    chosen = choose_device(device)
    studio = Studio(chosen, dtype=dtype or default_dtype(chosen.type))
    page = build(Handlers(studio, Limits(most_steps, most_side), folder, only), model)
    page.queue(max_size=_MOST_WAITING, default_concurrency_limit=1, api_open=False)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port or None,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        allowed_paths=[str(folder)],
        max_file_size=_MOST_BYTES,
        theme=theme(),
        css_paths=[CSS],
    )
    return page, str(url)


def run(options: argparse.Namespace, say: Callable[[str], object]) -> int:
    """Start the page and wait until it is stopped.

    Args:
        options: What `agentsd.app.options.add_arguments` gave.
        say: Shows a line.

    Returns:
        The exit code.
    """
    page, url = launch(
        options.model,
        device=options.device,
        dtype=options.dtype,
        host=options.host,
        port=options.port,
        output=options.output,
        most_steps=options.most_steps,
        most_side=options.most_side,
        any_model=options.any_model,
        browser=not options.no_browser,
    )
    say(f"agentsd app: {url} (Ctrl-C stops it; pictures go to {options.output})")
    if not is_loopback(options.host):
        say(f"Whoever reaches {options.host} can use this page: it has no accounts.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close()
    return 0


def _own_folder(output: Path) -> Path:
    from agentsd.pictures.files import check_writable

    folder = output.expanduser().resolve()
    check_writable(folder / "picture.png")
    return folder
