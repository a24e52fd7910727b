"""Run the notebooks and keep their outputs in the files."""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names without .ipynb (all)")
    args = parser.parse_args(argv)
    paths = sorted(FOLDER.glob("*.ipynb"))
    unknown = set(args.names) - {path.stem for path in paths}
    if unknown:
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}")
    for path in paths:
        if args.names and path.stem not in args.names:
            continue
        book = nbformat.read(path, 4)
        start = time.monotonic()
        NotebookClient(book, timeout=600, kernel_name="python3", record_timing=False).execute(cwd=str(FOLDER))
        for cell in book.cells:  # progress bars and the warnings of this machine's installation
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(book, path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
