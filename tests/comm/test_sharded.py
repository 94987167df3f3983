"""Pieces of parameters: whole at their owners and back, uneven and empty ones too, and sums over a sharded vector."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_so.comm.pieces import even
from tests.support import ranks
from tests.support.world import World


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def world(request):
    world = World(request.param)
    yield world
    world.close()


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 8))
def test_pieces_are_cut_as_torch_cuts_rows(rows, columns, world):
    pieces = even(rows, columns, world, 0)
    chunks = [len(chunk) for chunk in torch.zeros(rows, columns).chunk(world)]
    chunks += [0] * (world - len(chunks))
    assert [pieces.size(rank) for rank in range(world)] == [columns * chunk for chunk in chunks]
    assert pieces.numel == rows * columns


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_whole_tensors_come_to_their_owners_and_back_whatever_the_cuts(world, data):
    size = len(world.pipes)
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    cuts = st.lists(st.integers(0, 9), min_size=size - 1, max_size=size - 1)
    edges = [[0, *sorted(min(cut, n) for cut in data.draw(cuts)), n] for n in sizes]
    owners = [data.draw(st.integers(0, size - 1)) for _ in sizes]
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    for rank, (whole, got, mine, sent) in enumerate(world.run(ranks.exchanged, edges, owners, 0, dtype)):
        there = back = 0
        for tensor, arrived, piece, cut, owner in zip(whole, got, mine, edges, owners, strict=True):
            assert (arrived is not None) is (owner == rank)
            assert arrived is None or torch.equal(arrived, tensor)
            assert torch.equal(piece, 2 * tensor[cut[rank] : cut[rank + 1]])
            here = cut[rank + 1] - cut[rank]
            there += here if owner != rank else 0
            back += len(tensor) - here if owner == rank else 0
        assert sent == (there * dtype.itemsize, back * dtype.itemsize)


@pytest.mark.parametrize("sharded", [[True] * 4, [True, False, True, False]], ids=["all", "some"])
def test_products_of_sharded_vectors_are_those_of_whole_ones(world, sharded):
    answers = world.run(ranks.products, sharded)
    for gram, dimension, dense in answers:
        torch.testing.assert_close(gram, dense, rtol=1e-12, atol=1e-12)
        assert torch.equal(gram, answers[0][0])  # bit for bit, or ranks would decide differently
        assert dimension == 25
