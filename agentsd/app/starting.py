"""Starting the page: its folder, its address, and nothing that leaves this machine."""

import argparse
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentsd.app.options import is_loopback
from agentsd.system.installing import install_command

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
        ValueError: If the model, the device or the address is not there, the port is taken, or the folder cannot be
            written.
    """
    _check_host(host)
    folder = _own_folder(output)
    only = None if any_model or is_loopback(host) else model
    page = make(model, folder, device=device, dtype=dtype, most_steps=most_steps, most_side=most_side, only=only)
    from agentsd.app.page import CSS, theme

    try:
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
    except OSError as error:
        raise ValueError(f"port={port} of {host} cannot be used; give another one, or 0 for a free one.") from error
    return page, str(url)


def make(
    model: str,
    folder: Path,
    *,
    device: str = "auto",
    dtype: str | None = None,
    most_steps: int = 150,
    most_side: int = 1024,
    only: str | None = None,
) -> Any:
    """Make the page with its queue, without starting it.

    Args:
        model: The model that is shown first.
        folder: Folder of all that the page writes.
        device: Where it runs.
        dtype: Type of its weights; `None` is float32 on a CPU and float16 elsewhere.
        most_steps: Most steps of a picture.
        most_side: Longest side of a picture in pixels.
        only: The only model that visitors can take; `None` lets them choose.

    Raises:
        ImportError: If gradio is not installed.
        ValueError: If the model or the device is not there.
    """
    # Read while gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "temp")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the page needs gradio; run {install_command('app')}.") from error
    from agentsd.app.form import Limits
    from agentsd.app.handlers import Handlers
    from agentsd.app.page import build
    from agentsd.app.studio import Studio
    from agentsd.pictures.loading import choose_device, find_model
    from agentsd.pictures.settings import default_dtype

    find_model(model)  # a wrong path shows before anybody draws
    chosen = choose_device(device)
    studio = Studio(chosen, dtype=dtype or default_dtype(chosen.type))
    page = build(Handlers(studio, Limits(most_steps, most_side), folder, only), model)
    page.queue(max_size=_MOST_WAITING, default_concurrency_limit=1, api_open=False)
    return page


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


def _check_host(host: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:  # the latter: a part of a name is empty or too long
        raise ValueError(f"host={host!r} is no address; give 127.0.0.1, 0.0.0.0 or one of this machine's.") from error


def _own_folder(output: Path) -> Path:
    from agentsd.pictures.files import check_writable

    folder = output.expanduser().resolve()
    check_writable(folder / "picture.png")
    return folder
