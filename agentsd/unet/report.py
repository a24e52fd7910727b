"""What was patched and what was not, as data that prints as a table."""

from dataclasses import dataclass

from agentsd.schedule import AgentConfig, Schedule


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
    """The state of a patched denoiser; `print` it, or read the fields.

    Attributes:
        target: Class name of the denoiser.
        schedule: Schedule in force.
        layers: Patched layers in execution order.
        skipped: Layers left alone: (path, reason).
        seed: Seed of the random cell patterns and of the agents that are sampled.
        reuse_problem: Why a step ran the whole UNet where the schedule asked to reuse features, if one did.
        noise_problem: Why a step ran the last layer where the schedule asked to reuse the prediction, if one did.
        guidance_problem: Why guidance was computed where the schedule leaves it out, if it was.
        planned_stock: Levels that a plan leaves stock, by settings.
        active: Whether the patch is still installed; if not, the rest is what it was.
    """

    target: str
    schedule: Schedule
    layers: tuple[LayerReport, ...]
    skipped: tuple[tuple[str, str], ...]
    seed: int
    reuse_problem: str | None = None
    noise_problem: str | None = None
    guidance_problem: str | None = None
    planned_stock: tuple[tuple[AgentConfig, frozenset[int]], ...] = ()
    active: bool = True

    def __str__(self) -> str:
        lines = [f"agentsd on {self.target}: {len(self.layers)} self-attention layers patched, seed {self.seed}"]
        if not self.active:
            lines[0] += "; REMOVED or replaced by a later apply since, this is what it was"
        forecast = f", forecast {self.schedule.reuse_forecast:g}" if self.schedule.forecasts else ""
        start = 0.0
        for phase in self.schedule.phases:
            lines.append(f"  {start:4.0%} to {phase.until:4.0%} of the run: {_describe(phase.config)}")
            if phase.reuse > 1:
                depth = self.schedule.reuse_depth
                between = f"its last {depth} layer(s) between" if depth else "its prediction reused between"
                lines.append(f"      whole UNet every {phase.reuse} steps, {between}{forecast}")
            start = phase.until
            if phase.config is not None:
                left = dict(self.planned_stock).get(phase.config, frozenset())
                lines += [f"      {layer.name}: {_counts(layer, phase.config, left)}" for layer in self.layers]
        if self.schedule.reuses and self.schedule.last_full:
            lines.append("  whole UNet at the last step")
        if self.schedule.skips_guidance:
            first, last = self.schedule.guidance_interval
            lines.append(f"  guidance from {first:.0%} to {last:.0%} of the run only")
        lines += [f"  problem at {layer.name}: {layer.problem}" for layer in self.layers if layer.problem]
        if self.reuse_problem:
            lines.append(f"  problem: features not reused: {self.reuse_problem}")
        if self.noise_problem:
            lines.append(f"  prediction not reused, but the feature that enters the last layer: {self.noise_problem}")
        if self.guidance_problem:
            lines.append(f"  problem: guidance not left out: {self.guidance_problem}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped:
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"  not patched, {reason}: {len(names)} ({shown})")
        return "\n".join(lines)


def _describe(config: AgentConfig | None) -> str:
    if config is None:
        return "stock attention"
    merging = f"merge {config.merge_ratio:g} (stride {config.stride})" if config.merge_ratio else "no merging"
    if config.agent_ratio is None:
        return f"{merging}, no agents, levels down to /{config.max_downsample}"
    kind = {"merge": "merged", "pool": "pooled", "sample": "sampled"}[config.agents]
    least = f", at least {config.min_agents}" if config.min_agents is not None else ""
    most = f", at most {config.max_agents}" if config.max_agents is not None else ""
    return f"{merging}, {kind} agents (stride {config.stride}{least}{most}), levels down to /{config.max_downsample}"


def _counts(layer: LayerReport, config: AgentConfig, left_stock: frozenset[int]) -> str:
    if layer.level in left_stock:
        return "stock (the plan measured that these settings do not win here)"
    if layer.downsample > config.max_downsample:
        return f"stock (level /{layer.downsample} is coarser than max_downsample={config.max_downsample})"
    if layer.grid is None:
        return "grid known at the first call"
    height, width = layer.grid
    config = config.at_downsample(layer.downsample)
    counts = config.count_tokens(height, width)
    if counts is None:
        fits = config.whole_cells(height, width) > 0
        reason = "is so small that nothing would be saved" if fits else f"holds no whole cell of stride {config.stride}"
        return f"stock (grid {height}x{width} {reason})"
    text = f"grid {height}x{width}, {counts.tokens} tokens -> {counts.features} features"
    wanted = counts.tokens - int(config.merge_ratio * counts.tokens)
    if wanted < counts.features:
        text += f" (merge_ratio asks for {wanted}; one per cell stays)"
    if counts.agents is None:
        share = "half of the features" if config.gathers else "as many as the features"
        why = "" if config.agent_ratio is None else f" (they would be {share} or more)"
        return f"{text}, no agents{why}"
    text += f" -> {counts.agents} agents"
    if config.agents == "merge" and isinstance(config.agent_ratio, float):
        wanted = counts.tokens - int(config.agent_ratio * counts.tokens)
        if wanted < counts.agents:
            text += f" (agent_ratio asks for {wanted}; one per cell stays)"
    return text
