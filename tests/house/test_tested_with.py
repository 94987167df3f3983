"""The page of client packages is what its lines say, and they are of whole trainings of every client."""

import math

import pytest

from benchmarks.clients.page import METHODS, PAGE, ROOT, TESTS, read, rendered
from benchmarks.clients.trainings import CLIENTS, STEPS


def test_the_page_is_what_the_lines_say():
    assert PAGE.read_text() == rendered(read()), "write it anew: python -m benchmarks.clients.page"


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_was_trained_with_and_without_at_equal_steps(client):
    lines = [line for line in read() if line["client"] == client]
    seeds = {line["seed"] for line in lines}
    assert {(line["method"], line["seed"]) for line in lines} == {(m, seed) for m in METHODS for seed in seeds}
    assert len({(line["version"], line["what"], line["base"], line["torch"]) for line in lines}) == 1
    for line in lines:
        assert line["steps"] == STEPS
        assert "refused" in line or (math.isfinite(line["first"]) and math.isfinite(line["last"]))
    # Both sides begin at the same loss.
    begun = [{line["first"] for line in lines if line["seed"] == seed and "refused" not in line} for seed in seeds]
    assert all(max(found) - min(found) <= 1e-4 * max(map(abs, found)) for found in begun)


def test_no_line_is_of_a_client_that_is_gone():
    assert {line["client"] for line in read()} == set(CLIENTS)


def test_the_tests_that_the_page_names_are_there():
    assert [path for path in TESTS.values() if not (ROOT / path).exists()] == []
