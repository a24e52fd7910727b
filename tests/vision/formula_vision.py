"""The published classifiers written out: logits from weights under the authors' names, without this package.

Windows, stripes and shifts are masks over the whole map, and interpolation is a product with a matrix, so that no step
is taken as `agentsd.vision` takes it.
"""

import math

import torch
import torch.nn.functional as F

EPS = {"deit": 1e-6, "pvt": 1e-6, "swin": 1e-5, "cswin": 1e-5}  # of blocks and of the final norm; 1e-5 after patches


def logits(facts, weights, image):
    """Classify with the weights of a manifest, [B, classes]."""
    family = facts["config"].split("_")[1]
    layers = {one["name"]: one for one in facts["attention"]}
    x = {"deit": deit, "pvt": pvt, "swin": swin, "cswin": cswin}[family](weights, layers, image, EPS[family])
    return linear(x, weights, "head")


def deit(w, layers, image, eps):
    x, grid = patches(image, w, "patch_embed.proj", None, stride=16)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for path, layer in layers.items():
        x = block(x, w, path.removesuffix(".attn"), eps, lambda y, p=path, one=layer: qkv_layer(y, w, p, one, grid))
    return norm(x, w, "norm", eps)[:, 0]


def pvt(w, layers, image, eps):
    x = image
    for stage in range(1, 5):
        x, grid = patches(x, w, f"patch_embed{stage}.proj", f"patch_embed{stage}.norm", stride=2 if stage > 1 else 4)
        x = x + w[f"pos_embed{stage}"]
        for path, layer in layers.items():
            if path.startswith(f"block{stage}."):

                def attend(y, path=path, layer=layer, grid=grid):
                    query, both = linear(y, w, f"{path}.q"), linear(y, w, f"{path}.kv")
                    out = agents(query, *both.chunk(2, -1), w, path, layer, grid, f"{path}.dwc")
                    return linear(out, w, f"{path}.proj")

                x = block(x, w, path.removesuffix(".attn"), eps, attend)
        x = x.transpose(1, 2).unflatten(2, grid)
    return x.mean((2, 3))


def swin(w, layers, image, eps):
    x, grid = patches(image, w, "patch_embed.proj", "patch_embed.norm", stride=4)
    for stage in range(4):
        for path, layer in layers.items():
            if path.startswith(f"layers.{stage}."):
                number = int(path.split(".")[3])
                x = block(
                    x,
                    w,
                    path.removesuffix(".attn"),
                    eps,
                    lambda y, p=path, one=layer, g=grid, odd=number % 2: qkv_layer(y, w, p, one, g, odd=odd),
                )
        if stage < 3:
            place = f"layers.{stage}.downsample"
            corners = x.unflatten(1, (grid[0] // 2, 2, grid[1] // 2, 2))  # row, within it, column, within it
            corners = [corners[:, :, down, :, right] for down, right in ((0, 0), (1, 0), (0, 1), (1, 1))]
            x, grid = torch.cat(corners, -1).flatten(1, 2), (grid[0] // 2, grid[1] // 2)
            x = norm(x, w, f"{place}.norm", 1e-5) @ w[f"{place}.reduction.weight"].T
    return norm(x, w, "norm", eps).mean(1)


def cswin(w, layers, image, eps):
    x, grid = patches(image, w, "stage1_conv_embed.0", "stage1_conv_embed.2", stride=4, padding=2)
    for stage in range(1, 5):
        numbers = sorted({int(path.split(".")[1]) for path in layers if path.startswith(f"stage{stage}.")})
        for number in numbers:
            place = f"stage{stage}.{number}"
            branches = [layers[path] for path in layers if path.startswith(f"{place}.attns.")]

            def attend(y, place=place, branches=branches, grid=grid):
                query, key, value = linear(y, w, f"{place}.qkv").chunk(3, -1)
                parts = zip(*(part.chunk(len(branches), -1) for part in (query, key, value)), strict=True)
                out = [branch(*part, w, one, grid) for part, one in zip(parts, branches, strict=True)]
                return linear(torch.cat(out, -1), w, f"{place}.proj")

            x = block(x, w, place, eps, attend)
        if stage < 4:
            x = x.transpose(1, 2).unflatten(2, grid)
            x, grid = patches(x, w, f"merge{stage}.conv", f"merge{stage}.norm", stride=2, padding=1)
    return norm(x, w, "norm", eps).mean(1)


def branch(query, key, value, w, layer, grid):
    """One branch of CSwin: agents over the whole map, or stripes with the convolution inside them."""
    if layer["class"] == "AgentAttention":
        return agents(query, key, value, w, layer["name"], layer, grid, f"{layer['name']}.get_v")
    row, column = places(grid)
    stripe = row // layer["H_sp"] * grid[1] + column // layer["W_sp"]
    mask = torch.where(stripe[:, None] == stripe, 0.0, -math.inf)
    out = softmax(query, key, value, layer["heads"], mask)
    return out + depthwise(value, w, f"{layer['name']}.get_v", grid, stripe)


def qkv_layer(x, w, path, layer, grid, *, odd=0):
    """Attention of DeiT and Swin with its projections."""
    query, key, value = linear(x, w, f"{path}.qkv").chunk(3, -1)
    if layer["class"] == "AgentAttention":
        out = agents(query, key, value, w, path, layer, grid, f"{path}.dwc")
    elif layer["class"] == "WindowAttention":
        side = layer["window_size"][0]
        shift = side // 2 if odd and min(grid) > side else 0
        out = softmax(query, key, value, layer["heads"], windows(w, path, grid, side, shift))
    else:
        out = softmax(query, key, value, layer["heads"], torch.zeros(()))
    return linear(out, w, f"{path}.proj")


def windows(w, path, grid, side, shift):
    """Position biases within windows that start `shift` tokens early, nothing between windows, [heads, N, N]."""
    row, column = places(grid)
    window = (row + side - shift) // side * (grid[1] + side) + (column + side - shift) // side
    same = window[:, None] == window
    down, right = row[:, None] - row, column[:, None] - column
    index = ((down + side - 1) * (2 * side - 1) + right + side - 1).where(same, torch.zeros_like(down))
    bias = w[f"{path}.relative_position_bias_table"][index].permute(2, 0, 1)
    return bias.masked_fill(~same, -math.inf)


def agents(query, key, value, w, path, layer, grid, convolution):
    """Both softmaxes and the convolution, one head at a time; a class token comes first, if there is one."""
    height, width = grid
    lead, side = query.shape[1] - height * width, math.isqrt(layer["agent_num"])
    image = query[:, lead:].unflatten(1, grid)
    cells = [
        [(slice(i * n // side, -(-(i + 1) * n // side))) for i in range(side)] for n in grid
    ]  # where an axis is cut
    pooled = torch.stack([image[:, rows, columns].mean((1, 2)) for rows in cells[0] for columns in cells[1]], 1)
    biases = {name: w[f"{path}.{name}_bias"] for name in ("an", "na", "ah", "aw", "ha", "wa")}
    stretched = {name: stretch(7, height) @ biases[name] @ stretch(7, width).T for name in ("an", "na")}
    first = stretched["an"] + biases["ah"][0] + biases["aw"][0]  # heads, agents, rows, columns
    second = stretched["na"] + biases["ha"][0].permute(0, 3, 1, 2) + biases["wa"][0].permute(0, 3, 1, 2)
    first, second = first.flatten(2), second.flatten(2).transpose(1, 2)
    if lead:
        first = torch.cat([w[f"{path}.ac_bias"][0], first], 2)
        second = torch.cat([w[f"{path}.ca_bias"][0], second], 1)
    gathered = softmax(pooled, key, value, layer["heads"], first)
    out = softmax(query, pooled, gathered, layer["heads"], second)
    local = depthwise(value[:, lead:], w, convolution, grid, torch.zeros(height * width))
    return out + F.pad(local, (0, 0, lead, 0))


def softmax(query, key, value, heads, bias):
    """`softmax(Q K^T / sqrt(d) + bias) V` by heads; bias is broadcast to [heads, N, M]."""
    bias = bias.expand(heads, query.shape[1], key.shape[1])
    out = []
    for head, (q, k, v) in enumerate(zip(*(part.chunk(heads, -1) for part in (query, key, value)), strict=True)):
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias[head]
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out, -1)


def depthwise(value, w, path, grid, group):
    """A 3 x 3 convolution of each channel that sees nothing outside the map or in another group of tokens."""
    row, column = places(grid)
    weight = w[f"{path}.weight"][:, 0]
    out = w[f"{path}.bias"].expand_as(value)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            inside = (row + down >= 0) & (row + down < grid[0]) & (column + right >= 0) & (column + right < grid[1])
            other = ((row + down) * grid[1] + column + right).clamp(0, grid[0] * grid[1] - 1)
            seen = (inside & (group[other] == group)).to(value.dtype)[:, None]
            out = out + seen * value[:, other] * weight[:, down + 1, right + 1]
    return out


def stretch(size, length):
    """The matrix of linear interpolation with half-pixel centres, [length, size]."""
    at = ((torch.arange(length, dtype=torch.float64) + 0.5) * size / length - 0.5).clamp(0, size - 1)
    return (1 - (at[:, None] - torch.arange(size)).abs()).clamp(min=0).float()


def places(grid):
    """Row and column of each token."""
    position = torch.arange(grid[0] * grid[1])
    return position // grid[1], position % grid[1]


def patches(image, w, convolution, after, *, stride, padding=0):
    image = F.conv2d(image, w[f"{convolution}.weight"], w[f"{convolution}.bias"], stride, padding)
    x = image.flatten(2).transpose(1, 2)
    return (x if after is None else norm(x, w, after, 1e-5)), tuple(image.shape[2:])


def block(x, w, path, eps, attend):
    x = x + attend(norm(x, w, f"{path}.norm1", eps))
    hidden = linear(norm(x, w, f"{path}.norm2", eps), w, f"{path}.mlp.fc1")
    return x + linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), w, f"{path}.mlp.fc2")


def norm(x, w, path, eps):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * w[f"{path}.weight"] + w[f"{path}.bias"]


def linear(x, w, path):
    return x @ w[f"{path}.weight"].T + w[f"{path}.bias"]
