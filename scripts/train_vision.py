"""Train small classifiers with agent attention and with softmax attention on rendered scenes, or on a folder.

    python scripts/train_vision.py --arms "agent;softmax" --seeds 0,1,2 --output results/vision/training.jsonl

Stopped runs go on where they were (--state). One row is written at each evaluation.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from agentsd.vision import AgentAttention, AgentTransformer, VisionConfig, count_flops, create_model
from agentsd.vision.data import folder_pictures, scene_pictures
from agentsd.vision.functional import merge_heads, pool_agents, split_heads
from agentsd.vision.layers import Block
from agentsd.vision.training import Recipe, evaluate, train

# One skeleton; what differs is what stands in the blocks. The softmax blocks attend to all tokens (no reduction).
SKELETON = dict(
    family="pvt",
    dims=(32, 64, 128),
    depths=(2, 2, 2),
    heads=(1, 2, 4),
    agents=(9, 9, 9),
    reductions=(1, 1, 1),
    mlp_ratios=(4.0, 4.0, 4.0),
    drop_path=0.05,
)
AGENTS, SOFTMAX = ("AA", "AA", "AA"), ("SS", "SS", "SS")
ARMS = {
    "agent": dict(blocks=AGENTS),
    "agent, no bias": dict(blocks=AGENTS, bias=False),
    "agent, no convolution": dict(blocks=AGENTS, convolution=False),
    "agent, neither": dict(blocks=AGENTS, bias=False, convolution=False),
    # Wider perceptrons make up for the parameters of biases and convolutions.
    "softmax": dict(blocks=SOFTMAX, mlp_ratios=(4.4, 4.3, 4.2)),
    "agents early": dict(blocks=("AA", "AS", "SS"), mlp_ratios=(4.0, 4.1, 4.2)),
    "agents late": dict(blocks=("SS", "SA", "AA"), mlp_ratios=(4.4, 4.2, 4.0)),
    # Hierarchies of agents: fewer from stage to stage, and two grids of agents within a layer.
    "agents 36, 16, 9": dict(blocks=AGENTS, agents=(36, 16, 9)),
    "agents through agents": dict(blocks=AGENTS),
}
TWO_LEVELS = "agents through agents"
TEST_AGENTS = (1, 4, 9, 16, 25, 36)


class TwoLevels(AgentAttention):
    """Agents gather from agents of a grid twice as fine, and those from the tokens; both share the biases.

    `V_f = softmax(A_f K^T + B1) V`, `V_c = softmax(A_c A_f^T) V_f`, `O = softmax(Q A_c^T + B2) V_c + DWC(V)`.
    """

    def _folds(self, x):
        return False

    def attend(self, query, key, value, grid):
        coarse = self.agents
        fine = self.agents = tuple(min(2 * one, side) for one, side in zip(coarse, grid, strict=True))
        gather = self.biases(grid)[0]
        self.agents = coarse
        spread = self.biases(grid)[1]
        many, few = (split_heads(pool_agents(query, grid, agents), self.heads) for agents in (fine, coarse))
        local = self._local(value, grid, self.dwc)
        query, key, value = (split_heads(part, self.heads) for part in (query, key, value))
        gathered = F.scaled_dot_product_attention(many, key, value, attn_mask=gather)
        gathered = F.scaled_dot_product_attention(few, many, gathered)
        return merge_heads(F.scaled_dot_product_attention(query, few, gathered, attn_mask=spread)) + local


def two_levels(layer):
    """The same layer, with the same weights, that attends through two grids of agents."""
    twin = TwoLevels(layer.dim, layer.heads, grid=layer.grid, agents=layer.agents)
    twin.load_state_dict(layer.state_dict())
    return twin


def build(arm, size, logits, seed):
    torch.manual_seed(seed)
    if arm not in ARMS:
        return create_model(arm, num_classes=logits, image_size=size)
    config = VisionConfig(**(SKELETON | ARMS[arm]), image_size=(size, size))
    model = AgentTransformer(config, num_classes=logits)
    if arm == TWO_LEVELS:
        for block in model.modules():
            if isinstance(block, Block):
                block.attn = two_levels(block.attn)
    return model


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="agent;softmax", help=f"of {'; '.join(ARMS)}; separated by ';', or all")
    parser.add_argument("--model", help="train a published model, such as agent_pvt_tiny, in place of the arms")
    parser.add_argument("--data", default="scenes", help="scenes, or a folder with one folder of pictures a class")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--size", type=int, default=48, help="side of the pictures")
    parser.add_argument("--pictures", type=int, default=6000, help="rendered scenes to learn from")
    parser.add_argument("--held-out", type=int, default=1000, help="rendered scenes of combinations never shown")
    for field, default in (("steps", 1000), ("batch", 32), ("every", 200)):
        parser.add_argument(f"--{field}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--optimizer", default="adamw", help="an optimiser of timm")
    parser.add_argument("--state", default="outputs/vision", help="folder for the state of each run")
    parser.add_argument("--output", default="outputs/vision/training.jsonl", help="rows are appended")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    if options.data == "scenes":
        training = scene_pictures(options.pictures, options.size, seed=1)
        evaluation = scene_pictures(options.held_out, options.size, seed=2, held_out=True)
    else:
        training = folder_pictures(options.data, options.size, part="train")
        evaluation = folder_pictures(options.data, options.size, part="evaluation")

    arms = [options.model] if options.model else list(ARMS) if options.arms == "all" else split(options.arms)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    for seed in (int(one) for one in options.seeds.split(",")):
        for arm in arms:
            recipe = Recipe(
                steps=options.steps,
                batch=options.batch,
                every=options.every,
                rate=options.rate,
                optimizer=options.optimizer,
                seed=seed,
            )
            run(arm, recipe, training, evaluation, options, output)
    return 0


def split(text):
    """Names of arms."""
    names = [one.strip() for one in text.split(";")]
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        sys.exit(f"--arms: {unknown[0]!r} is unknown; choose of {'; '.join(ARMS)}.")
    return names


def run(arm, recipe, training, evaluation, options, output):
    model = build(arm, options.size, training.logits, recipe.seed)
    facts = {
        "arm": arm,
        "seed": recipe.seed,
        "data": options.data if options.data == "scenes" else "folder",
        "size": options.size,
        "pictures": len(training.images),
        "held_out": len(evaluation.images),
        "steps": recipe.steps,
        "batch": recipe.batch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": count_flops(model, options.size),
        "torch": torch.__version__,
    }
    name = f"{arm.replace(', ', '-').replace(' ', '-')}-{recipe.seed}.pt"
    started = time.perf_counter()
    with tqdm(total=recipe.steps, desc=f"{arm}, seed {recipe.seed}", file=sys.stderr) as bar:
        rows = train(
            model,
            training,
            evaluation,
            recipe,
            state_file=Path(options.state) / name,
            report=lambda row: bar.set_postfix(exact=f"{row['exact']:.3f}", loss=f"{row['training_loss']:.3f}"),
            advance=bar.update,
        )
    seconds = round(time.perf_counter() - started, 1)
    with output.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(facts | {"kind": "curve"} | rounded(row)) + "\n")
        if arm == "agent":
            for number in TEST_AGENTS:
                model.set_agents([number] * len(model.stages))
                row = {"kind": "agents at test time", "agents": number} | evaluate(model, evaluation)
                file.write(json.dumps(facts | rounded(row)) + "\n")
        file.write(json.dumps(facts | {"kind": "run", "seconds": seconds}) + "\n")


def rounded(row):
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
