"""Reading the step: views, foreign views, copies, numbers, batches; runs that start late or take turns."""

import weakref

import numpy as np
import pytest
import torch

from agentsd.unet.steps import Position, StepReader

TIMESTEPS = torch.tensor([900, 700, 700, 500, 100])  # a repeated one, as Heun has


def where(position):
    return position and (position.index, position.total)


def test_views_give_the_index_even_of_repeated_timesteps():
    reader = StepReader()
    found = [reader.read(t, [TIMESTEPS]) for t in TIMESTEPS]
    assert [where(position) for position in found] == [(i, 5) for i in range(5)]
    assert len({position.run for position in found}) == 1


@pytest.mark.parametrize("shape", [lambda t: t[None], lambda t: t.expand(4), lambda t: t.reshape(1, 1)])
def test_views_of_one_timestep_in_any_shape(shape):
    reader = StepReader()
    reader.read(TIMESTEPS[0], [TIMESTEPS])
    assert where(reader.read(shape(TIMESTEPS[3]), [TIMESTEPS])) == (3, 5)


def test_a_run_counts_from_where_it_enters():
    reader = StepReader()
    found = [reader.read(t, [TIMESTEPS]) for t in TIMESTEPS[2:]]
    assert [where(position) for position in found] == [(0, 3), (1, 3), (2, 3)]


def test_a_new_timesteps_tensor_is_a_new_run():
    reader = StepReader()
    first = reader.read(TIMESTEPS[2], [TIMESTEPS])
    fresh = TIMESTEPS.clone()
    second = reader.read(fresh[0], [fresh])
    assert (where(first), where(second)) == ((0, 3), (0, 5))
    assert first.run != second.run


def test_the_scheduler_says_where_its_steps_begin_and_end():
    whole = torch.arange(10)
    part = whole[2:8]
    assert where(StepReader().read(part[0], [part])) == (0, 6)


def test_unknown_scheduler_is_read_from_the_timestep_alone():
    reader = StepReader()
    other = torch.tensor([1.0, 2.0])
    assert [where(reader.read(t, [other])) for t in TIMESTEPS] == [(i, 5) for i in range(5)]


def test_runs_take_turns():
    reader = StepReader()
    one, two = torch.tensor([9, 8, 7]), torch.tensor([6, 5, 4])
    found = [(reader.read(one[i], [one, two]), reader.read(two[i], [one, two])) for i in range(3)]
    assert [tuple(map(where, pair)) for pair in found] == [((i, 3), (i, 3)) for i in range(3)]
    assert len({position.run for pair in found for position in pair}) == 2


@pytest.mark.parametrize("made_inside", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_views_in_inference_mode(known, made_inside):
    reader = StepReader()
    with torch.inference_mode():
        timesteps = TIMESTEPS.clone() if made_inside else TIMESTEPS
        found = [reader.read(t, [timesteps] if known else []) for t in timesteps]
    found.append(reader.read(timesteps[4], [timesteps] if known else []))  # and after it
    assert [where(position) for position in found] == [(i, 5) for i in (0, 1, 2, 3, 4, 4)]
    assert {position.run for position in found} == {1}


class Memory:
    """Puts tensors where nobody holds one, so that freed memory is used again at once."""

    def __init__(self, places=20):
        self.places = np.zeros((places, 3))
        self.users = [lambda: None] * places

    def tensor(self, *values):
        free = next(place for place, user in enumerate(self.users) if user() is None)
        array = self.places[free]  # the tensor holds it for as long as it lives
        array[:] = values
        self.users[free] = weakref.ref(array)
        return torch.from_numpy(array)


@pytest.mark.parametrize("known", [True, False])
def test_freed_timesteps_whose_memory_a_later_run_gets_are_another_run(known):
    memory, reader, runs, addresses = Memory(), StepReader(), [], set()
    for _ in range(15):
        timesteps = memory.tensor(9, 6, 3)
        addresses.add(timesteps.data_ptr())
        found = [reader.read(t, [timesteps] if known else []) for t in timesteps[:2]]  # and then interrupted
        assert [where(position) for position in found] == [(0, 3), (1, 3)]
        runs.append(found[0].run)
        del timesteps
    assert runs == list(range(1, 16))
    assert len(addresses) < 15  # else no memory was used again


@pytest.mark.parametrize(
    "timesteps", [[900, 700, 500], TIMESTEPS.tolist(), [900, 700, 700, 700, 500, 500], [900, 800, 900, 800, 700]]
)
def test_copies_are_found_by_value_onwards(timesteps):
    reader, timesteps = StepReader(), torch.tensor(timesteps)
    total = len(timesteps)
    for _ in range(2):
        found = [reader.read(t.clone(), [timesteps]) for t in timesteps]
        assert [where(position) for position in found] == [(i, total) for i in range(total)]
        assert {position.run for position in found} == {1}
    assert where(reader.read(torch.tensor([900, 900]), [timesteps])) == (0, total)


def test_copies_and_views_go_on_from_each_other():
    reader = StepReader()
    found = [reader.read(t.clone() if i % 2 else t, [TIMESTEPS]) for i, t in enumerate(TIMESTEPS)]
    assert [where(position) for position in found] == [(i, 5) for i in range(5)]


def test_copies_of_unknown_timesteps_and_numbers_count_by_their_share_of_training():
    assert where(StepReader().read(torch.tensor(999), [])) == (0, 1000)
    assert where(StepReader().read(500, [TIMESTEPS])) == (499, 1000)
    assert where(StepReader().read(0.0, [], train_steps=50)) == (49, 50)
    assert where(StepReader().read(10**6, [])) == (0, 1000)
    assert StepReader().read(500, []).run is None


def test_samples_at_different_timesteps_have_no_step():
    assert StepReader().read(torch.tensor([900, 700]), [TIMESTEPS]) is None
    assert StepReader().read(torch.tensor([]), [TIMESTEPS]) is None
    assert StepReader().read("now", [TIMESTEPS]) is None


def test_numbers_do_not_depend_on_what_ran_before():
    reader = StepReader()
    for t in TIMESTEPS[:3]:
        reader.read(t, [TIMESTEPS])
    assert reader.read(500, [TIMESTEPS]) == Position(499, 1000)


def test_one_step():
    assert where(StepReader().read(torch.tensor([999])[0], [torch.tensor([999])])) == (0, 1)
