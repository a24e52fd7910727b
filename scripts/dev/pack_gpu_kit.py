#!/usr/bin/env python
"""Pack the tree and the wheels that a GPU machine lacks: `agentsd bench --suite gpu` then needs no network.

The machine has to have Python, torch, transformers, accelerate and torchmetrics. Copy the folder there and start
run.sh: it takes up only wheels whose packages are missing, measures, and goes on where it was when it is started again.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from agentsd.cli.main import guard

ROOT = Path(__file__).resolve().parents[2]
# What the suite imports beyond torch, transformers, accelerate, torchmetrics and what those need.
PACKAGES = ("diffusers", "DeepCache", "tomesd", "importlib_metadata", "zipp", "pillow", "scipy", "platformdirs")
TREE = ("agentsd", "scripts", "pyproject.toml", "README.md", "LICENSE", "constraints.txt")
MOST_BYTES = 60 * 2**20
RUN = """#!/usr/bin/env bash
# Measure within MINUTES (9), into results/ beside this file. Start it again to go on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${PYTHON:-python3}
"$python" - <<'END'
import importlib.util, pathlib, subprocess, sys
names = {"pillow": "PIL", "deepcache": "DeepCache"}
for wheel in sorted(pathlib.Path("wheels").glob("*.whl")):
    name = wheel.name.split("-")[0]
    if importlib.util.find_spec(names.get(name.lower(), name.lower())) is None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", "site"]
        subprocess.run([*pip, str(wheel)], check=True)
END
export PYTHONPATH="$PWD/tree:$PWD/site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
exec "$python" -m agentsd bench --suite gpu --minutes "${MINUTES:-9}" --output results "$@"
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=Path("outputs/gpu-kit"), help="folder of the kit, written anew")
    made.add_argument("--python-version", metavar="X.Y", help="Python of the GPU machine (this one's)")
    made.add_argument("--platform", default="manylinux_2_28_x86_64", help="platform of its wheels")
    made.add_argument("--skip", nargs="*", default=[], choices=PACKAGES, metavar="PACKAGE", help="what it has already")
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.output.exists() and any(args.output.iterdir()) and not (args.output / "run.sh").exists():
        raise ValueError(f"--output {str(args.output)!r} holds other things; name a new folder.")
    shutil.rmtree(args.output, ignore_errors=True)
    wheels = args.output / "wheels"
    wheels.mkdir(parents=True)
    download([name for name in PACKAGES if name not in args.skip], wheels, args)
    size = sum(file.stat().st_size for file in wheels.iterdir())
    if size > MOST_BYTES:
        raise ValueError(f"the wheels have {size / 2**20:.0f} MiB, more than {MOST_BYTES >> 20}; give --skip scipy.")
    copy_tree(args.output / "tree")
    run = args.output / "run.sh"
    run.write_text(RUN, encoding="utf-8")
    run.chmod(0o755)
    print(f"{args.output}: {len(list(wheels.iterdir()))} wheels, {size / 2**20:.0f} MiB; start run.sh on the machine")
    return 0


def download(names: list[str], folder: Path, args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--dest", str(folder), "--constraint", str(ROOT / "constraints.txt"), "--only-binary", ":all:"]
    command += ["--platform", args.platform, "--platform", "manylinux2014_x86_64"]
    if args.python_version is not None:
        command += ["--python-version", args.python_version]
    done = subprocess.run([*command, *names], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pip download failed: {' '.join(done.stderr.split())[-400:]}")


def copy_tree(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)


if __name__ == "__main__":
    sys.exit(guard("pack_gpu_kit.py", main))
