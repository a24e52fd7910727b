"""`agentsd`: draw, compare, plan, calibrate, measure and evaluate from the command line.

Demo model and committed figures need no network: try `agentsd compare --prompt "a red ring"`.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from agentsd.cli.printer import note, quiet
from agentsd.system.memory import is_out_of_memory

# Each is a module of this folder with HELP, add_arguments(parser) and run(options) -> exit code.
COMMANDS = ("generate", "compare", "plan", "calibrate", "bench", "evaluate", "info", "app")
BAD_INPUT = 2
UNFINISHED = 3  # of a run that can go on: disk full, a process died
STOPPED = 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; it loads no torch.

    Example:
        >>> parser().parse_args(["info", "--json"]).json
        True
    """
    made = argparse.ArgumentParser(
        prog="agentsd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--version", action="version", version=f"agentsd {_version()}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = _module(name)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after the program's name; `None` takes the process's own.

    Returns:
        The exit code: 0, 1 where a check failed or work is left, 2 for bad input, 3 for a run that can go on.

    Raises:
        SystemExit: If the command line is not understood.
    """
    options = parser().parse_args(argv)
    return guard(f"agentsd {options.command}", lambda: _module(options.command).run(options), options)


def guard(name: str, call: Callable[[], int | None], options: argparse.Namespace | None = None) -> int:
    """Run a command; a wrong input ends with one line instead of a traceback.

    Args:
        name: The command, for the line.
        call: What runs and returns the exit code.
        options: Its options, for names in the line.

    Returns:
        The exit code.
    """
    try:
        with quiet():
            return call() or 0
    except KeyboardInterrupt:
        note(f"{name}: stopped")
        return STOPPED
    except Exception as error:  # a defect keeps its traceback
        found = explain(error, argparse.Namespace(command="") if options is None else options)
        if found is None or os.environ.get("AGENTSD_TRACEBACK"):
            raise
        code, text = found
        note(f"{name}: {text}")
        return code


def explain(error: Exception, options: argparse.Namespace) -> tuple[int, str] | None:
    """Return the exit code and the line for an error, or `None` for a defect of the program.

    Args:
        error: What a command raised.
        options: The options that it had.

    Example:
        >>> explain(ValueError("steps=0 must be at least 1."), parser().parse_args(["generate"]))
        (2, 'error: --steps 0 must be at least 1.')
    """
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return BAD_INPUT, f"error: {memory_advice(options)}"
    if isinstance(error, ValueError | TypeError | OSError | ImportError):
        return BAD_INPUT, f"error: {_with_options(text, options)}"
    if type(error).__name__ == "UnfinishedError":  # its module loads numpy
        return UNFINISHED, f"unfinished: {text}"
    return None


def memory_advice(options: argparse.Namespace) -> str:
    """Return what to try when the memory does not suffice.

    Example:
        >>> memory_advice(parser().parse_args(["generate", "--width", "4096"]))
        'the memory of this device does not suffice. Try --width 1024.'
    """
    given = vars(options)
    advice = []
    for name in ("batch_size", "batch"):
        value = given.get(name)
        if isinstance(value, int) and value > 1 and not isinstance(value, bool):
            advice.append(f"--{name.replace('_', '-')} {value // 2}")
    for name in ("width", "height", "size"):
        value = given.get(name)
        value = max(value) if isinstance(value, list) and value else value
        if isinstance(value, int) and value > 64:
            advice.append(f"--{name} {min(max(64, value // 2 // 64 * 64), 1024)}")
    if not advice and given.get("dtype") in (None, "float32") and "dtype" in given:
        advice.append("--dtype float16 on a GPU, or a smaller model")
    return f"the memory of this device does not suffice. Try {' '.join(advice) or 'a smaller picture'}."


# Fields whose option has another name, by command.
_OTHER_NAMES = {
    "calibrate": {"num_inference_steps": "steps"},
    "evaluate": {"height": "size", "width": "size", "arm": "arm"},
}


def _with_options(text: str, options: argparse.Namespace) -> str:
    """Name the option where a message begins with a field: `steps=0 must` becomes `--steps 0 must`."""
    match = re.match(r"(\w+)=", text)
    if match is None:
        return text
    field = match[1]
    option = _OTHER_NAMES.get(options.command, {}).get(field, field if field in vars(options) else None)
    return text if option is None else f"--{option.replace('_', '-')} {text[match.end() :]}"


def _module(command: str) -> ModuleType:
    return import_module(f"agentsd.cli.{command}")


def _version() -> str:
    import agentsd

    return agentsd.__version__


if __name__ == "__main__":
    sys.exit(main())
