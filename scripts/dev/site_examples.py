"""Extension of griffe for the API reference: our docstrings say `Example:` where griffe expects `Examples:`."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            lines = obj.docstring.value.split("\n")
            obj.docstring.value = "\n".join("Examples:" if line == "Example:" else line for line in lines)
