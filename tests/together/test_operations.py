"""What a step dispatches does not grow with equal layers, and the host reads one number: the guard's."""

import pytest

from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo
from tests.support.operations import READ, of_steps

#: The most operations of a step on 12 blocks, views and AdamW's own apart.
MOST = {
    "soap": (SOAP(start=8), 220),
    "muon": (Muon(), 160),
    "shampoo": (Shampoo(), 260),
    "kfac": (KFAC(), 400),
    "ekfac": (EKFAC(start=8), 500),
}

pytestmark = pytest.mark.thread("own")


@pytest.mark.parametrize("name", MOST)
def test_operations_of_a_step(name):
    method, most = MOST[name]
    counts = of_steps(method, 12)
    assert max(count.total() for count in counts) <= most
    assert all(count[READ] == 1 for count in counts)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST)
def test_operations_do_not_grow_with_equal_layers(name):
    method, most = MOST[name]
    assert max(count.total() for count in of_steps(method, 24)) <= 1.2 * most
