"""The options of `agentsd app`; loads neither torch nor gradio."""

import argparse
import ipaddress
from pathlib import Path

from agentsd.cli.arguments import one_of, side, whole
from agentsd.pictures.settings import DTYPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_arguments(parser)
        >>> parser.parse_args([]).host
        '127.0.0.1'
    """
    parser.add_argument("--model", default="demo", help="demo, demo-sd15, a diffusers folder or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--dtype", type=one_of(DTYPES), help=f"{', '.join(DTYPES)} (float16 on a GPU, float32 on a CPU)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to; others than loopback open the page")
    parser.add_argument("--port", type=whole(0, 65535), default=7860, help="port (7860); 0 takes a free one")
    parser.add_argument("--output", type=Path, default=Path("outputs/app"), help="folder of all that the page writes")
    parser.add_argument("--most-steps", type=whole(1, 1000), default=150, help="most steps of a picture (150)")
    parser.add_argument("--most-side", type=side, default=1024, help="longest side of a picture in pixels (1024)")
    parser.add_argument("--any-model", action="store_true", help="let visitors choose a model on an open page")
    parser.add_argument("--no-browser", action="store_true", help="open no browser")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
