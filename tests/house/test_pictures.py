"""Pictures that were drawn from a page's text are of the text that is there."""

import pytest

draw = pytest.importorskip("docs.pictures.draw")


@pytest.mark.parametrize("name", draw.FLOWS)
def test_a_flow_is_that_of_its_page(name):
    text = draw.mermaid(draw.FLOWS[name])
    assert draw.mark(text) in (draw.HERE / f"{name}.svg").read_text(), f"run: python -m docs.pictures.draw {name}"
    assert draw.mark(text) != draw.mark(text + " ")


def test_every_picture_is_there():
    assert {path.stem for path in draw.HERE.glob("*.svg")} == {"actions", "schedule", "scale", *draw.FLOWS}
