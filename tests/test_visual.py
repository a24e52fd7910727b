"""Looking inside a patched pipeline: what is shown is what is computed."""

import sys

import pytest
import torch
from probe import AGENTS, MERGE, MIXED, POOL, SAMPLE, assert_same, snapshot
from tiny import draw

import agentsd
from agentsd import MergedTokens
from agentsd.attention.sampling import sample_tokens
from agentsd.pictures.recording import record
from agentsd.pictures.visual import draw_agents, draw_costs, draw_front, draw_map, draw_merging, multiply_adds
from agentsd.unet.processor import attend

PICTURE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
MERGED_AGENTS = MergedTokens(merge_ratio=0.4, agent_ratio=0.9, stride=4)


@pytest.fixture(autouse=True)
def _no_window():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


def recorded(pipe, config, **arguments):
    with agentsd.apply(pipe, config), record(pipe) as seen:
        draw(pipe, steps=1, **arguments)
    return seen[0]


class TestRecord:
    def test_sees_the_calls_that_the_schedule_changes_and_leaves_nothing(self, tiny_pipe):
        patch = agentsd.apply(tiny_pipe, MIXED)
        before, patched = snapshot(tiny_pipe.unet), draw(tiny_pipe)
        with record(tiny_pipe) as seen:
            assert torch.equal(draw(tiny_pipe), patched)
        assert [(each.call, each.plan.settings) for each in seen] == [(0, AGENTS), (1, AGENTS), (2, MERGE)]
        assert all(each.name == patch.report().layers[0].name and each.tokens.shape[1] == 256 for each in seen)
        assert_same(before, snapshot(tiny_pipe.unet))

    def test_of_another_layer(self, tiny_pipe):
        patch = agentsd.apply(tiny_pipe, MergedTokens(stride=4, max_downsample=2))
        name = patch.report().layers[1].name
        with record(tiny_pipe.unet, name) as seen:
            draw(tiny_pipe, steps=2)
        assert {each.name for each in seen} == {name}
        assert {(each.plan.height, each.plan.width) for each in seen} == {(8, 8)}

    def test_ends_with_an_error(self, tiny_pipe):
        agentsd.apply(tiny_pipe, AGENTS)
        before = snapshot(tiny_pipe.unet)
        with pytest.raises(RuntimeError, match="stop"), record(tiny_pipe):
            raise RuntimeError("stop")
        assert_same(before, snapshot(tiny_pipe.unet))

    def test_errors(self, tiny_pipe):
        with (
            pytest.raises(ValueError, match=r"StableDiffusionPipeline is not patched; call agentsd\.apply"),
            record(tiny_pipe),
        ):
            pass
        agentsd.apply(tiny_pipe)
        with (
            pytest.raises(ValueError, match=r"layer='up' is not patched; choose one of down_blocks\.0"),
            record(tiny_pipe, "up"),
        ):
            pass


class TestMaps:
    @pytest.mark.parametrize("config", [AGENTS, POOL], ids=["merged", "pooled"])
    def test_are_those_of_the_layer(self, config, tiny_pipe):
        # With the maps, the values and the shortcut, the layer's own output comes out (one head: no average).
        seen = recorded(tiny_pipe, config)
        attn = seen.attn
        gather, broadcast = seen.maps()
        torch.testing.assert_close(gather.sum(-1), torch.ones(gather.shape[:2]))
        torch.testing.assert_close(broadcast.sum(-1), torch.ones(broadcast.shape[:2]))
        attn.heads, before = 1, attn.heads
        scale, attn.scale = attn.scale, attn.inner_dim**-0.5
        try:
            gather, broadcast = seen.maps()
            value = attn.to_v(seen.tokens)
            wanted = attn.to_out[0](broadcast @ (gather @ value) + config.shortcut * value)
            found = attend(attn, seen.tokens, seen.metric, seen.plan)
        finally:
            attn.heads, attn.scale = before, scale
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

    def test_sampled_agents_gather_from_themselves(self, tiny_pipe):
        seen = recorded(tiny_pipe, SAMPLE)
        gather, broadcast = seen.maps()
        assert torch.equal(gather.argmax(-1), seen.plan.sample.expand(2, -1))
        assert torch.equal(gather.sum(-1), torch.ones(2, 16))
        attn = seen.attn
        attn.heads, before = 1, attn.heads
        scale, attn.scale = attn.scale, attn.inner_dim**-0.5
        try:
            _, broadcast = seen.maps()
            value = attn.to_v(sample_tokens(seen.tokens, seen.plan.sample))
            found = attend(attn, seen.tokens, seen.metric, seen.plan)
        finally:
            attn.heads, attn.scale = before, scale
        torch.testing.assert_close(found, attn.to_out[0](broadcast @ value), rtol=1e-4, atol=1e-5)

    def test_merged_tokens_share_their_feature(self, tiny_pipe):
        seen = recorded(tiny_pipe, MERGED_AGENTS)
        gather, broadcast = seen.maps()
        agents = seen.plan.counts.agents
        assert gather.shape == (2, agents, 256)
        assert broadcast.shape == (2, 256, agents)
        assert len(broadcast[0].unique(dim=0)) == seen.plan.counts.kept

    def test_a_phase_without_agents_has_none(self, tiny_pipe):
        seen = recorded(tiny_pipe, MERGE)
        for ask in (seen.maps, seen.agent_places):
            with pytest.raises(ValueError, match="merged without agents; look at an agent phase"):
                ask()


class TestPlaces:
    def test_pooled_agents_are_in_the_middle_of_their_cells(self, tiny_pipe):
        places = recorded(tiny_pipe, POOL).agent_places()
        assert places[:5].tolist() == [[2, 2], [2, 6], [2, 10], [2, 14], [6, 2]]
        latents = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(1))
        places = recorded(tiny_pipe, POOL, latents=latents).agent_places()
        assert places.tolist() == [[2, 2], [2, 4.5], [5, 2], [5, 4.5]]  # those at the border are cut off

    def test_sampled_agents_are_at_their_tokens(self, tiny_pipe):
        seen = recorded(tiny_pipe, SAMPLE)
        places = seen.agent_places()
        assert torch.equal((places[:, 0] - 0.5) * 16 + places[:, 1] - 0.5, seen.plan.sample.float())

    def test_merged_agents_are_one_in_each_cell_and_the_tokens_kept(self, tiny_pipe):
        seen = recorded(tiny_pipe, AGENTS)
        places = seen.agent_places()
        assert len(places) == seen.plan.counts.agents == 16
        assert {tuple(place) for place in (places // 4).int().tolist()} == {(y, x) for y in range(4) for x in range(4)}
        more = recorded(tiny_pipe, MERGED_AGENTS)
        assert len(more.agent_places().unique(dim=0)) == more.plan.counts.agents > 16


class TestMergePicture:
    def test_has_a_colour_for_each_feature(self, tiny_pipe):
        merged = recorded(tiny_pipe, MERGE).merge_picture(PICTURE)
        assert merged.shape == (3, 16, 16)
        assert len(merged.flatten(1).unique(dim=1).T) == 128

    def test_is_the_small_picture_if_nothing_merges(self, tiny_pipe):
        merged = recorded(tiny_pipe, POOL).merge_picture(PICTURE)
        torch.testing.assert_close(merged, PICTURE.view(3, 16, 2, 16, 2).mean((2, 4)))

    def test_other_shapes_are_refused(self, tiny_pipe):
        with pytest.raises(ValueError, match=r"picture of shape \(1, 32, 32\) must be \[3, H, W\]"):
            recorded(tiny_pipe, POOL).merge_picture(PICTURE[:1])


class TestCosts:
    def test_are_those_of_the_matrix_products(self):
        assert multiply_adds(64, 64, 320) == 2 * 4096**2 * 320
        assert multiply_adds(64, 64, 320, POOL) == 4 * 4096 * 256 * 320
        assert multiply_adds(64, 64, 320, SAMPLE) == 2 * 4096 * 256 * 320
        assert multiply_adds(64, 64, 320, AGENTS) == 4 * 4096 * 256 * 320 + (4096 - 256) * 256 * 320
        assert multiply_adds(64, 64, 320, MERGE) == 2 * 2048**2 * 320 + (4096 - 1024) * 1024 * 320

    def test_a_grid_without_a_cell_costs_what_stock_costs(self):
        assert multiply_adds(2, 2, 8, POOL) == multiply_adds(2, 2, 8)

    @pytest.mark.parametrize("name", ["height", "width", "channels"])
    def test_sizes_are_checked(self, name):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            multiply_adds(**{"height": 1, "width": 1, "channels": 1, name: 0})


class TestDrawings:
    def test_agents_over_the_picture(self, tiny_pipe):
        axes = draw_agents(recorded(tiny_pipe, POOL), PICTURE.permute(1, 2, 0).numpy())
        assert axes.get_title() == "16 agents for 256 tokens"
        assert len(axes.lines) == 6
        assert len(axes.collections[0].get_offsets()) == 16

    def test_an_agent_is_marked_and_keys_are_no_agents(self, tiny_pipe):
        picture = PICTURE.permute(1, 2, 0).numpy()
        seen = recorded(tiny_pipe, POOL)
        places, ring = (each.get_offsets().tolist() for each in draw_agents(seen, picture, marked=5).collections)
        assert ring == [places[5]]
        with pytest.raises(ValueError, match=r"marked=16 must lie in \[0, 16\)"):
            draw_agents(seen, picture, marked=16)
        assert "sampled keys for 256 tokens" in draw_agents(recorded(tiny_pipe, SAMPLE), picture).get_title()

    def test_a_map_over_the_picture(self, tiny_pipe):
        seen = recorded(tiny_pipe, POOL)
        axes = draw_map(seen.maps()[0][-1, 3], seen, PICTURE.permute(1, 2, 0).numpy(), title="agent 3")
        assert len(axes.images) == 2
        assert axes.get_title() == "agent 3"
        with pytest.raises(ValueError, match=r"weights of shape \(9,\) must be \[256\]"):
            draw_map(torch.ones(9), seen, PICTURE.permute(1, 2, 0).numpy())

    def test_merging_call_by_call(self, tiny_pipe):
        with agentsd.apply(tiny_pipe, MERGE), record(tiny_pipe) as seen:
            draw(tiny_pipe, steps=3)
        axes = draw_merging(seen, PICTURE)
        assert [each.get_title() for each in axes] == [f"call {i}: 256 to 128" for i in range(3)]
        with pytest.raises(ValueError, match="axes are 3, recordings 2"):
            draw_merging(seen[:2], PICTURE, axes)
        with pytest.raises(ValueError, match="holds no call; record a run whose schedule merges"):
            draw_merging([], PICTURE)

    def test_costs_and_front_are_labelled(self):
        axes = draw_costs({"stock": None, "agents": POOL}, sides=(8, 16, 32))
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["stock", "agents"]
        axes = draw_front({"fast": (3.0, 30.0), "paper": (1.2, 28.0)}, "PSNR")
        assert [text.get_text() for text in axes.texts] == ["fast", "paper"]
        axes = draw_front({"fast": (3.0, 30.0)}, "PSNR", speed="times fewer calls", fewer={"8 steps": (2.0, 20.0)})
        assert [text.get_text() for text in axes.texts] == ["8 steps", "fast"]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["stock with fewer steps", "agentsd"]
        assert axes.get_xlabel() == "times fewer calls"

    def test_without_matplotlib_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
        with pytest.raises(ImportError, match=r"pip install matplotlib"):
            draw_costs({"stock": None})
