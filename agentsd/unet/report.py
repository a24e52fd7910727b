"""What was patched and what was not, as data: a summary, the details, and plain data for metrics."""

from dataclasses import asdict, dataclass
from typing import Any

from agentsd.attention.cells import whole_cells
from agentsd.attention.settings import Attention, MergedTokens, PooledAgents, SampledKeys
from agentsd.schedule import Schedule
from agentsd.schedule.text import schedule_object
from agentsd.unet.record import LastRun
from agentsd.unet.summary import summary, title


@dataclass(frozen=True)
class LayerReport:
    """One self-attention layer that was patched.

    Attributes:
        name: Path of the layer in the denoiser.
        level: Halvings of the latent grid before the layer.
        downsample: Downsampling factor relative to the finest patched level.
        grid: Token grid (height, width): of the last call, else of the model's default size, else `None`.
        problem: Why the layer ran stock attention where the schedule asked for more; `None` if it did not.
    """

    name: str
    level: int
    downsample: int
    grid: tuple[int, int] | None
    problem: str | None


@dataclass(frozen=True)
class Report:
    """The state of a patched denoiser. Printed, it is a summary; `details` lists the layers.

    Attributes:
        target: Class name of the denoiser.
        schedule: Schedule in force.
        layers: Patched layers in execution order.
        skipped: Layers left alone: (path, reason).
        seed: Seed of random cell patterns and sampled keys.
        skipping_problem: Why a step was full although the schedule skips it; `None` if none was.
        noise_problem: Why skipped steps ran the last layer although the schedule runs none; `None` if none did.
        guidance_problem: Why guidance was computed although the schedule leaves it out; `None` if it was not.
        batch_problem: Why the pictures of a batch shared their full steps although the schedule chooses them by
            picture; `None` if they did not.
        planned_stock: Levels that a plan leaves stock, by settings.
        active: Whether the patch is in force; if not, the other fields show its last state.
        inactive_reason: Why it is not in force; `None` if it is.
        last_run: The steps of the last run by kind; `None` before the first.
    """

    target: str
    schedule: Schedule
    layers: tuple[LayerReport, ...]
    skipped: tuple[tuple[str, str], ...]
    seed: int
    skipping_problem: str | None = None
    noise_problem: str | None = None
    guidance_problem: str | None = None
    batch_problem: str | None = None
    planned_stock: tuple[tuple[Attention, frozenset[int]], ...] = ()
    active: bool = True
    inactive_reason: str | None = None
    last_run: LastRun | None = None

    def __str__(self) -> str:
        return "\n".join(summary(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON's types, for logs and metrics.

        Example:
            >>> patch = agentsd.apply(pipe, "fast")
            >>> image = pipe("a red circle", num_inference_steps=2, output_type="pt").images
            >>> patch.report().to_dict()["last_run"]["full"]
            2
            >>> patch.remove()
        """
        run = self.last_run
        return {
            "target": self.target,
            "active": self.active,
            "inactive_reason": self.inactive_reason,
            "title": title(self.schedule),
            "schedule": schedule_object(self.schedule),
            "seed": self.seed,
            "layers": [asdict(layer) | {"grid": layer.grid and list(layer.grid)} for layer in self.layers],
            "not_patched": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "problems": {
                "skipping": self.skipping_problem,
                "noise": self.noise_problem,
                "guidance": self.guidance_problem,
                "batch": self.batch_problem,
            },
            "last_run": None if run is None else run.to_dict(),
        }

    def details(self) -> str:
        """Return everything that is known, layer by layer: up to hundreds of lines.

        Example:
            >>> with agentsd.apply(unet, "gentle") as patch:
            ...     "down_blocks.0.attentions.0" in patch.report().details()
            True
        """
        patched = f"{len(self.layers)} self-attention layers patched"
        if not self.layers:
            patched = f"skipping alone: the layers of {self.target} are not patched"
        lines = [f"agentsd on {self.target}: {patched}, seed {self.seed}"]
        if not self.active:
            lines[0] += f"; NOT IN FORCE: {self.inactive_reason}; this was its last state"
        skipping = self.schedule.skipping
        forecast = f", forecast {skipping.forecast:g}" if skipping.forecast else ""
        start = 0.0
        for phase in self.schedule.phases:
            lines.append(f"  {start:4.0%} to {phase.until:4.0%} of the run: {attention_in_words(phase.attention)}")
            if phase.every > 1:
                depth = skipping.depth
                between = f"the last {depth} layer(s) at skipped steps" if depth else "skipped steps run no layer"
                lines.append(f"      full step every {phase.every} steps, {between}{forecast}")
            start = phase.until
            if phase.attention is not None:
                left = dict(self.planned_stock).get(phase.attention, frozenset())
                lines += [f"      {layer.name}: {_counts(layer, phase.attention, left)}" for layer in self.layers]
        if not self.schedule.attentions:
            lines += [f"      {layer.name}: stock{_grid(layer)}" for layer in self.layers]
        if skipping.tolerance is not None:
            whose = ", by picture" if skipping.by_picture else ""
            lines.append(f"  full steps chosen at run time for a relative error of {skipping.tolerance:g}{whose}")
        elif skipping.listed is not None:
            listed = skipping.listed
            lines.append(f"  full steps listed: {len(listed.full)} of {listed.calls}, at one solver's noise levels")
        elif self.schedule.skips_steps and skipping.last_full:
            lines.append("  full step at the last step")
        if self.schedule.skips_guidance:
            first, last = self.schedule.guidance_interval
            lines.append(f"  guidance from {first:.0%} to {last:.0%} of the run only")
        lines += [f"  problem at {layer.name}: {layer.problem}" for layer in self.layers if layer.problem]
        if self.skipping_problem:
            lines.append(f"  problem: steps not skipped: {self.skipping_problem}")
        if self.noise_problem:
            lines.append(f"  skipped steps run the last layer: {self.noise_problem}")
        if self.guidance_problem:
            lines.append(f"  problem: guidance not left out: {self.guidance_problem}")
        if self.batch_problem:
            lines.append(f"  problem: steps not chosen by picture: {self.batch_problem}")
        if self.last_run is not None:
            lines.append(f"  last run: {self.last_run}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped:
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"  not patched, {reason}: {len(names)} ({shown})")
        return "\n".join(lines)


def attention_in_words(attention: Attention | None) -> str:
    """Return settings of self-attention in words.

    Example:
        >>> attention_in_words(SampledKeys(stride=4))
        'sampled keys and values (stride 4), levels down to /1'
    """
    if attention is None:
        return "stock attention"
    levels = f"levels down to /{attention.max_downsample}"
    if isinstance(attention, MergedTokens):
        merging = f"merge {attention.merge_ratio:g} of the tokens" if attention.merge_ratio else "no merging"
        agents = "no agents" if attention.agent_ratio is None else "merged agents"
        return f"{merging}, {agents} (stride {attention.stride}), {levels}"
    if isinstance(attention, PooledAgents):
        kind, least, most = "pooled agents", attention.min_agents, attention.max_agents
    else:
        kind, least, most = "sampled keys and values", attention.min_keys, attention.max_keys
    bounds = "" if least is None else f", at least {least}"
    bounds += "" if most is None else f", at most {most}"
    return f"{kind} (stride {attention.stride}{bounds}), {levels}"


def _grid(layer: LayerReport) -> str:
    return "" if layer.grid is None else f", grid {layer.grid[0]}x{layer.grid[1]}"


def stays_stock(layer: LayerReport, attention: Attention, left_stock: frozenset[int]) -> bool:
    """Return whether a layer runs stock attention under settings.

    Args:
        layer: The layer.
        attention: The settings.
        left_stock: Levels that a plan leaves stock.
    """
    if layer.level in left_stock or layer.downsample > attention.max_downsample:
        return True
    return layer.grid is not None and attention.at_downsample(layer.downsample).count_tokens(*layer.grid) is None


def _counts(layer: LayerReport, attention: Attention, left_stock: frozenset[int]) -> str:
    if layer.level in left_stock:
        return "stock (the plan measured no gain here)"
    if layer.downsample > attention.max_downsample:
        return f"stock (level /{layer.downsample} is coarser than max_downsample={attention.max_downsample})"
    if layer.grid is None:
        return "grid known at the first call"
    height, width = layer.grid
    here = attention.at_downsample(layer.downsample)
    counts = here.count_tokens(height, width)
    if counts is None:
        fits = whole_cells(height, width, here.cell_stride(height, width)) > 0
        reason = "is too small to save anything" if fits else f"holds no whole cell of stride {here.stride}"
        return f"stock (grid {height}x{width} {reason})"
    text = f"grid {height}x{width}, {counts.tokens} tokens"
    if isinstance(here, SampledKeys):
        return f"{text}, {counts.keys} keys and values"
    if isinstance(here, PooledAgents):
        return f"{text}, {counts.agents} agents"
    text += f", {counts.kept} kept"
    wanted = counts.tokens - int(here.merge_ratio * counts.tokens)
    if wanted < counts.kept:
        text += f" (merge_ratio asks for {wanted}; one per cell stays)"
    if here.agent_ratio is None:
        return f"{text}, no agents"
    if counts.agents is None:
        return f"{text}, no agents (they would be half of the kept tokens or more)"
    text += f", {counts.agents} agents"
    wanted = counts.tokens - int(here.agent_ratio * counts.tokens)
    if here.agent_ratio < 1 and wanted < counts.agents:
        text += f" (agent_ratio asks for {wanted}; one per cell stays)"
    return text
