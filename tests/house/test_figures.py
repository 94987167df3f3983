"""Every figure of the pages is computed from a results file or the code, and is what the page says."""

import pytest

from tests.house.claims import CLAIMS, GIVEN
from tests.support.blocks import pages
from tests.support.claims import OTHERS, ROOT, found, pattern, rounds_to, unclaimed, wrong

PAGES = [*(str(page.relative_to(ROOT)) for page in pages() if page.name not in OTHERS), "benchmarks/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_what_they_are_computed_from(page):
    text = (ROOT / page).read_text()
    assert list(wrong(text, CLAIMS.get(page, {}))) == []
    assert [setting for setting in GIVEN.get(page, ()) if not pattern(setting).search(text)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_is_claimed(page):
    assert unclaimed((ROOT / page).read_text(), CLAIMS.get(page, {}), GIVEN.get(page, ())) == []


def test_claims_are_of_pages_that_are_there():
    assert {*CLAIMS, *GIVEN} <= {*PAGES}


@pytest.mark.parametrize("page", [page for page in PAGES if CLAIMS.get(page)])
def test_a_figure_that_is_off_by_one_in_its_last_digit_is_found(page):
    text = (ROOT / page).read_text()
    for claim, values in CLAIMS[page].items():
        place = found(text, claim)
        for group, shown in enumerate(place.groups(), 1):
            start, end = (at - place.start() for at in place.span(group))
            digit = max(at for at, char in enumerate(shown.partition("e")[0]) if char.isdigit())
            other = f"{shown[:digit]}{(int(shown[digit]) + 1) % 10}{shown[digit + 1 :]}"
            assert list(wrong(place[0][:start] + other + place[0][end:], {claim: values})) != [], (claim, shown, other)


@pytest.mark.parametrize("said", ["It takes 1.4x as long.", "37 % less", "in 3 ms", "ends at .129", "| 2.04 | 1.9 |"])
def test_a_figure_without_a_claim_is_found(said):
    assert unclaimed(f"# Page\n\n{said}\n", {}) != []
    assert unclaimed(f"# Page\n\n{said}\n", {}, [said]) == []


def test_what_others_found_stands_with_their_paper():
    assert unclaimed("# Page\n\nIt gains 1.4x at scale (arXiv 2509.02046).\n", {}) == []
    assert unclaimed("# Page\n\nIt gains 1.4x at scale. So they say (arXiv 2509.02046).\n", {}) != []


@pytest.mark.parametrize("said", ["Python 3.11", "torch 2.13.0", "step 50", "`lr=0.01`", "[1.2](docs/a.md)"])
def test_versions_numbers_of_steps_and_code_are_no_figures(said):
    assert unclaimed(f"# Page\n\n{said}\n", {}) == []


@pytest.mark.parametrize(
    ("value", "shown"), [(1.4099, "1.41"), (0.00654, ".0065"), (127686, "127,686"), (2.4e-4, "2e-4"), (-78.2, "-78")]
)
def test_a_figure_is_rounded_to_the_digits_that_it_shows(value, shown):
    assert rounds_to(value, shown)
    assert not rounds_to(value * 1.3, shown)
