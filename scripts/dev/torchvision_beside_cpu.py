#!/usr/bin/env python
"""Let torchvision's own operators load beside a CPU build of torch: the tests of timm and of detectors need them.

    LD_LIBRARY_PATH=$(python scripts/dev/torchvision_beside_cpu.py outputs/stand-ins) python -m pytest tests/vision

Where the package index has torchvision for CUDA alone, its binary holds the operators for the CPU too, but asks for
libraries of CUDA. This writes stand-ins for them into a folder and prints its path: functions that return 0. They are
called when kernels for CUDA are registered, which a CPU never runs. It needs Linux, gcc and readelf. For tests only.
"""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path


def package(name):
    """The folder of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None:
        sys.exit(f"{name} is not installed; install it without its dependencies: pip install --no-deps {name}")
    return Path(found.origin).parent


def symbols(binary):
    """Dynamic symbols of a binary: kind, whether it is defined here, name, version."""
    text = subprocess.run(["readelf", "-W", "--dyn-syms", binary], capture_output=True, text=True, check=True).stdout
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0][:-1].isdigit() and fields[4] == "GLOBAL":
            name, _, version = fields[7].partition("@")
            yield fields[3], fields[6] != "UND", name, version.strip("@")


def source(wanted):
    """C source of symbols, each a kind and a name."""
    return "".join(
        f"char {name}[64];\n" if kind == "OBJECT" else f"int {name}(void) {{ return 0; }}\n" for kind, name in wanted
    )


def build(folder, library, wanted):
    """Compile a stand-in for a library; its name is the version of its symbols."""
    (folder / "stand_in.c").write_text(source(wanted), encoding="utf-8")
    (folder / "versions").write_text(f"{library} {{ global: *; }};", encoding="utf-8")
    options = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library}"]
    if library.startswith("libcudart"):
        options.append(f"-Wl,--version-script={folder / 'versions'}")
    subprocess.run(["gcc", *options, "-o", str(folder / library), str(folder / "stand_in.c")], check=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the stand-ins are written")
    folder = parser.parse_args(arguments).folder.resolve()
    binary = package("torchvision") / "_C.so"
    here = {name for part in (package("torch") / "lib").glob("*.so") for _, own, name, _ in symbols(part) if own}
    missing = [one for one in symbols(binary) if not one[1]]
    runtime = sorted({version for *_, version in missing if version.startswith("libcudart")})
    if not runtime:
        sys.exit(f"{binary} asks for no library of CUDA, so it needs no stand-ins.")
    folder.mkdir(parents=True, exist_ok=True)
    for library in runtime:
        build(folder, library, [(kind, name) for kind, _, name, version in missing if version == library])
    others = [(kind, name) for kind, _, name, version in missing if not version and name not in here]
    build(folder, "libc10_cuda.so", others)
    build(folder, "libtorch_cuda.so", [])
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
