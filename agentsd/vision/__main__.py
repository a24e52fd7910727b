"""`python -m agentsd.vision`: the models, and converting the authors' checkpoints to safetensors."""

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 1 if it fails on the data given.

    Args:
        arguments: The command line, without the program; `None` takes the process's own.

    Raises:
        SystemExit: If the command line is not understood.
    """
    parser = argparse.ArgumentParser(prog="python -m agentsd.vision", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("models", help="list the models: name, published name, parameters")
    convert = commands.add_parser("convert", help="convert a checkpoint of the authors to safetensors")
    convert.add_argument("source", help="the authors' .pth file; it is read without running code in it")
    convert.add_argument("target", help="the .safetensors file to write")
    convert.add_argument("--model", required=True, help="name of the model, such as agent_swin_tiny or agent_swin_t")
    convert.add_argument("--image-size", type=int, help="side of the images; resizes the weights")
    convert.add_argument("--num-classes", type=int, default=1000, help="classes of the head in the file")
    convert.add_argument("--no-ema", action="store_true", help="take the plain weights where there are averaged ones")
    options = parser.parse_args(arguments)

    from agentsd.vision import create_model
    from agentsd.vision.configs import CONFIGS, find_config, published_name
    from agentsd.vision.files import convert as convert_file

    if options.command == "models":
        import torch

        for name in CONFIGS:
            with torch.device("meta"):
                number = sum(parameter.numel() for parameter in create_model(name).parameters())
            sys.stdout.write(f"{name:24}{published_name(name):20}{number:>12,}\n")
        return 0
    try:
        model = create_model(options.model, image_size=options.image_size, num_classes=options.num_classes)
        name = find_config(options.model)[0]
        report = convert_file(options.source, options.target, model, name=name, ema=not options.no_ema)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(
        f"{options.target}: {len(model.state_dict())} weights of {name}, {len(report.resized)} of them resized, "
        f"{len(report.left_out)} derived buffers left out, {len(report.fresh)} not in the file\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
