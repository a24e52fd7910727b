"""Full steps chosen by picture: a picture of a batch is what it is alone, and the UNet runs for those that need it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrix import KINDS, PICTURE
from tiny import make_tiny_pipe
from tiny_denoisers import SKIPPING, wan

import agentsd
from agentsd import Schedule, Skipping
from agentsd.unet.batch import Part, copies_in
from agentsd.unet.by_picture import ByPicture
from agentsd.unet.controller import Controller
from agentsd.unet.noise_levels import NoiseLevels
from agentsd.unet.record import LastRun

PROMPTS = ("a red circle", "two blue squares on a field", "z")
APART = agentsd.preset("balanced").with_tolerance(0.06).with_by_picture()
# Without: in runs of two or four steps nothing is skipped; LCM has none to skip; inpainting takes other noise in a
# batch without agentsd too; video UNets have several frames a picture.
OTHERS = {"turbo", "sdxl_turbo", "latent_consistency", "inpaint", "inpaint_nine_channels", "sdxl_inpaint"}
WHOLE = [kind for kind in KINDS if kind.id not in OTHERS | {"animate_diff", "stable_video"}]
ONE_IMAGE_EACH = {"t2i_adapter", "upscale"}


def make(pipe, places=range(3), *, steps=20, **arguments):
    """Return the latents of some of the prompts, each from its own noise."""
    return pipe(
        prompt=[PROMPTS[place] for place in places],
        generator=[torch.Generator().manual_seed(place) for place in places],
        num_inference_steps=steps,
        output_type="latent",
        **arguments,
    )[0]


def apart(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.id)
def test_a_picture_in_a_batch_is_what_it_is_alone(kind):
    pipe, arguments = kind.build()
    steps = 40 if kind.id == "sdxl_refiner" else 20
    several = dict(arguments)
    if kind.id in ONE_IMAGE_EACH:
        several["image"] = arguments["image"].expand(3, *arguments["image"].shape[1:])
    with agentsd.apply(pipe, APART.with_tolerance(0.02)) as patch:
        batch = make(pipe, steps=steps, **several)
        run = patch.report().last_run
        alone, calls = [], []
        for place in range(3):
            alone.append(make(pipe, [place], steps=steps, **arguments))
            calls.append(patch.report().last_run.full)
    assert apart(batch, torch.cat(alone)) < 2e-5
    assert run.calls == pytest.approx(sum(calls) / 3)
    assert run.calls < steps
    assert patch.report().skipping_problem is None


# Tolerances at which the three pictures need different full steps.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("text_to_image", 0.025), ("sdxl", 0.04), ("perturbed_attention", 0.08)]
)
def test_the_unet_runs_for_the_pictures_that_need_it(name, tolerance):
    pipe, arguments = next(kind for kind in WHOLE if kind.id == name).build()
    sizes = []

    def count(module, inputs):
        sizes.append(len(inputs[0]))

    count.agentsd_optional = True
    with agentsd.apply(pipe, APART.with_tolerance(tolerance)) as patch:
        hook = pipe.unet.conv_in.register_forward_pre_hook(count)
        make(pipe, **arguments)
        hook.remove()
        run = patch.report().last_run
    whole = max(sizes)
    assert len(run.partial) > 2
    assert [size for size in sizes if size < whole] == [round(share * whole) for share in run.partial]
    assert sizes.count(whole) == run.full


def test_by_default_the_largest_error_decides_for_all():
    pipe = make_tiny_pipe()
    with agentsd.apply(pipe, tolerance=0.06) as patch:
        make(pipe)
        run = patch.report().last_run
    assert run.partial == ()
    assert 0 < run.skipped < 20


def test_equal_seeds_give_equal_pictures_and_undoing_gives_stock():
    pipe = make_tiny_pipe()
    stock = make(pipe)
    with agentsd.apply(pipe, APART) as patch:
        first = make(pipe)
        assert "partial" in patch.report().to_dict()["last_run"]
        assert torch.equal(make(pipe), first)
        with patch.using(tolerance=0.025) as used:
            make(pipe)
        assert used.schedule.skipping.by_picture
        assert "partial" in used.last_steps
        assert torch.equal(make(pipe), first)
    assert not torch.equal(first, stock)
    assert torch.equal(make(pipe), stock)


@pytest.mark.parametrize(
    "noisy", ["EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_other_solvers(noisy):
    import diffusers

    pipe = make_tiny_pipe()
    pipe.scheduler = getattr(diffusers, noisy).from_config(pipe.scheduler.config)
    with agentsd.apply(pipe, APART):
        batch = make(pipe)
        alone = torch.cat([make(pipe, [place]) for place in range(3)])
    assert apart(batch, alone) < 2e-5


@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 0.007), (5.0, 0.06)])
def test_with_and_without_guidance_and_where_it_ends(scale, tolerance):
    pipe, within = make_tiny_pipe(), APART.with_tolerance(tolerance)
    for schedule in (within, replace(within, guidance_interval=(0.0, 0.5))):
        with agentsd.apply(pipe, schedule) as patch:
            batch = make(pipe, guidance_scale=scale)
            assert patch.report().last_run.partial
            alone = torch.cat([make(pipe, [place], guidance_scale=scale) for place in range(3)])
        assert apart(batch, alone) < 2e-5


def test_an_error_in_a_call_for_some_pictures_leaves_nothing_behind():
    pipe = make_tiny_pipe()
    with agentsd.apply(pipe, APART):
        first = make(pipe)

        def fail(module, inputs):
            if len(inputs[0]) < 6:
                raise RuntimeError("out of memory")

        fail.agentsd_optional = True
        hook = pipe.unet.conv_in.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            make(pipe)
        hook.remove()
        assert torch.equal(make(pipe), first)


def test_a_compiled_denoiser_shares_its_steps_and_the_report_says_so():
    pipe = make_tiny_pipe()
    pipe.unet.compile(backend="eager")
    with agentsd.apply(pipe, APART) as patch, pytest.warns(UserWarning, match="does not choose steps by picture"):
        make(pipe, steps=10)
    report = patch.report()
    assert report.last_run.partial == ()
    assert report.batch_problem == report.to_dict()["problems"]["batch"]
    line = "problem: steps not chosen by picture: the denoiser is compiled, and calls of other batch sizes would be"
    assert line in str(report)
    assert line in report.details()


TRANSFORMERS = {
    "stable_diffusion_3", "stable_diffusion_3_unguided", "flux", "flux_2", "flux_true_guidance", "pixart", "sana",
    "aura_flow", "lumina_2", "hunyuan_dit", "cog_view_4", "sd3_controlnet", "flux_controlnet", "hunyuan_controlnet",
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in SKIPPING if kind.id in TRANSFORMERS], ids=lambda kind: kind.id)
def test_transformers_too(kind, monkeypatch):
    pipe, arguments = kind.build()
    many = {
        name: torch.cat([value] * 3) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()
    }
    observe = ByPicture.observe

    def latents(seeds, given):
        def at_its_own_pace(group, *args, **kwargs):  # tiny transformers need the same steps for all pictures
            observe(group, *args, **kwargs)
            for place, controller in enumerate(group._controllers):
                controller.max_skipped = 1 + seeds[place]

        monkeypatch.setattr(ByPicture, "observe", at_its_own_pace)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(generator=generators, num_inference_steps=20, output_type="latent", **given)[0]

    with agentsd.apply(pipe, APART.with_tolerance(0.5)) as patch:
        batch = latents((0, 1, 2), many)
        assert len(patch.report().last_run.partial) > 4
        alone = torch.cat([latents((seed,), arguments) for seed in range(3)])
    assert apart(batch, alone) < 2e-5


def test_other_denoisers_are_refused_and_stay_as_they_were():
    pipe, _ = wan()
    with pytest.raises(
        ValueError, match=r"by_picture=True does not fit WanTransformer3DModel: .*with_by_picture\(False\)"
    ):
        agentsd.apply(pipe, APART)
    assert not hasattr(pipe.transformer, "_agentsd")


def test_the_setting_is_checked_written_and_read():
    with pytest.raises(ValueError, match="by_picture='yes' must be True or False"):
        Skipping(tolerance=0.1, by_picture="yes")
    with pytest.raises(ValueError, match="by_picture=True goes with a tolerance only"):
        Schedule.constant(None, every=2).with_by_picture()
    assert Schedule.from_json(APART.to_json()) == APART
    assert APART.with_by_picture(False) == agentsd.preset("fast")
    assert "by_picture" not in agentsd.preset("fast").to_json()


def test_the_report_names_the_choice():
    pipe = make_tiny_pipe()
    with agentsd.apply(pipe, APART) as patch:
        make(pipe)
    shown = str(patch.report())
    assert "predicted to stay within 0.06, for each picture by itself" in shown
    assert "full for some of the pictures" in shown
    assert "full steps chosen at run time for a relative error of 0.06, by picture" in patch.report().details()


def test_a_run_counts_the_share_of_the_pictures():
    run = LastRun(full=4, skipped=6, stock=0, forced=(), partial=(0.5, 0.25))
    assert (run.steps, run.calls) == (12, 4.75)
    assert run.to_dict() | {"partial": [0.5, 0.25], "calls": 4.75} == run.to_dict()


@given(st.data(), st.integers(1, 3), st.integers(1, 5))
def test_taking_and_putting_go_to_the_same_samples(data, copies, of):
    pictures = data.draw(st.sets(st.integers(0, of - 1), min_size=1))
    part, batch = Part(tuple(sorted(pictures)), of), torch.arange(copies * of)
    taken = part.take(batch)
    assert taken.tolist() == [copy * of + picture for copy in range(copies) for picture in sorted(pictures)]
    whole = torch.full_like(batch, -1)
    part.put(taken, whole)
    assert whole.tolist() == [i if i % of in pictures else -1 for i in range(copies * of)]


@pytest.mark.parametrize(("copies", "of"), [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2), (2, 4)])
def test_copies_are_found_in_the_samples_once(copies, of):
    known = {}
    sample = torch.randn(of, 4, 2, 2).repeat(copies, 1, 1, 1)
    assert copies_in(sample, known) == copies
    assert copies_in(torch.zeros_like(sample), known) == copies


def test_each_controller_sees_its_own_samples_and_guided_errors():
    levels = NoiseLevels((4.0, 3.0, 2.0, 1.0, 0.5, 0.0), "epsilon")
    group = ByPicture(lambda: Controller(levels, tolerance=0.05))
    single = [Controller(levels, tolerance=0.05) for _ in range(2)]
    torch.manual_seed(0)
    guide = lambda error: error[:1] + 3 * (error[1:] - error[:1])  # noqa: E731
    for index in range(4):
        sample, prediction = torch.randn(2, 4, 4, 2, 2)
        prediction[1::2] *= 0.01
        group.observe(index, sample, prediction, Part((0, 1), of=2), guide=guide)
        for place, one in enumerate(single):
            one.observe(index, sample[place::2], prediction[place::2], guide=guide)
    expected = tuple(place for place, one in enumerate(single) if one.needs_full(4))
    assert group.part(4) == Part(expected, of=2)
    assert expected == (0,)
    forecast = group.forecast(4, sample)
    assert torch.equal(forecast[1::2], single[1].forecast(4, sample[1::2]))
    assert not forecast[0::2].any()


def test_pictures_given_as_conditions_do_not_hide_the_copies():
    pipe, _ = next(kind for kind in KINDS if kind.id == "instruct_pix2pix").build()
    with agentsd.apply(pipe, APART) as patch:
        make(pipe, image=PICTURE)
    assert patch.report().last_run.partial
