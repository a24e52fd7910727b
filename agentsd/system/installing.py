"""How to install the package: it is on no package index yet, so its repository is named."""

REPOSITORY = "https://github.com/agentsd/agentsd"


def install_command(extra: str | None = None) -> str:
    """Return the command that installs the package, to be pasted into a shell.

    Args:
        extra: Name of an extra, such as `app`; `None` is the package alone.

    Example:
        >>> install_command("app")
        "pip install 'agentsd[app] @ git+https://github.com/agentsd/agentsd'"
    """
    name = "agentsd" if extra is None else f"agentsd[{extra}]"
    return f"pip install '{name} @ git+{REPOSITORY}'"
