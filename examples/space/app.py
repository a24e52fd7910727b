"""The page of `agentsd app` as a Hugging Face Space: the bundled demo model, open to whoever visits.

Visitors cannot choose another model. Pictures lie in the Space's own temporary folder, and go with it.
"""

import tempfile
import threading
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {
    "model": "demo",
    "host": "0.0.0.0",  # the Space's own proxy stands in front
    "port": 7860,
    "output": Path(tempfile.gettempdir()) / "agentsd",
    "most_steps": 50,
    "most_side": 512,
}


def main() -> None:
    """Start the page, and keep it open."""
    from agentsd.app import launch

    _, url = launch(**SETTINGS)
    print(f"agentsd: {url}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
