"""The page is whole, small, valid for its library, and what strings of a run hold stays text."""

import json
import re
from html.parser import HTMLParser

import altair
import pytest

from lightning_so.report.charts.chart import MARKS
from lightning_so.report.html import data, text
from lightning_so.report.page import page
from lightning_so.report.run import Run
from lightning_so.report.sections import sections
from tests.support import recorded

EVIL = [
    "<script>alert(1)</script>", "</script><script>alert(2)</script>", "${alert(3)}", "<!--", "\u2028alert(4)", "]]>",
    "a\"onmouseover='alert(5)'", "{{alert(6)}}", "<img src=x onerror=alert(7)>", "datum['a']", "\x00\x1b[31m", "$title",
]  # fmt: skip


class Seen(HTMLParser):
    """Tags, ids, links and texts."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags, self.ids, self.links, self.attributes = [], [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.attributes += [name for name, _ in attrs]
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []


def evil(ranks: int = 1) -> list:
    """Recordings whose every string would like to be run."""
    recordings = recorded.healthy(ranks, 300, names=EVIL)
    for each in recordings:
        each["facts"] |= {"optimizer": EVIL[0], "method": EVIL[1], "plan": EVIL[1], "strategy": EVIL[8]}
        each["facts"]["settings"] = {name: {name: name} for name in EVIL}
        each["facts"]["versions"] = {name: name for name in EVIL}
        each["written"] |= {"why": "exception", "message": EVIL[1]}
        each["events"] = [{"step": 9, "kind": kind, "name": n, "text": n} for n in EVIL for kind in ("cooled", n)]
        each["units"]["names"] = EVIL[: len(each["units"]["names"])]
        each["spans"] += [[name, 300, 5.9, 0.001, 0] for name in EVIL]
        each["solved"] = [[300, each["rank"], 0.1, EVIL]]
        each["spans"] += [["solve", 300, 5.9, 0.001, 1]]
        each["memory"] = {name: 1024 for name in EVIL}
        each["shadow"] = {"method": EVIL[0], "text": EVIL[1], "samples": [{"step": 9, "base": 1.0, "method": 2.0}]}
        recorded.units([each], "dead", EVIL[0], 1.0)
    return recordings


def charts(runs):
    return [chart for part in sections(runs, []) for chart in part.charts]


@pytest.fixture(scope="module")
def healthy():
    """A run, and its page."""
    run = Run("a", recorded.healthy(2, 400))
    return run, page([run])


def test_the_page_needs_nothing_else(healthy):
    content = healthy[1]
    seen = Seen(content)
    assert seen.links
    assert all(link.startswith(("#", "data:")) for link in seen.links)
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))
    assert not {"src", "srcset", "action"} & set(seen.attributes)
    assert "default-src 'none'" in content
    assert seen.tags.count("script") == 3


def test_parts_come_in_the_order_in_which_they_are_read(healthy):
    names = re.findall(r'<section id="(?:part-)?(\w+)"', healthy[1])
    assert names == ["verdict", "loss", "time", "curvature", "layers", "units", "memory", "shadow", "events", "about"]


def test_every_chart_is_a_figure_with_a_text(healthy):
    run, content = healthy
    drawn = charts([run])
    assert {"staleness", "drift", "overhead", "blocks"} <= {chart.name for chart in drawn}
    for chart in drawn:
        figure = re.search(rf'<figure id="{chart.name}".*?</figure>', content, re.DOTALL)[0]
        assert f"<h3>{text(chart.title)}</h3>" in figure
        assert re.search(r"<figcaption>.*\d.*</figcaption>", figure, re.DOTALL)
        assert re.search(r'aria-label="[^"]*\d', figure)


@pytest.mark.slow
def test_what_has_no_data_is_left_out_and_says_what_would_record_it():
    bare = recorded.healthy(1, 100, method=None)
    for each in bare:
        each |= {"layers": None, "units": None, "spectra": [], "spans": [], "solved": [], "memory": {}}
    content = page([Run("a", bare)])
    for words in ("CurvatureMonitor(every=100)", "Recorded by SecondOrder", "shadow=True"):
        assert words in content
    assert 'id="trust"' not in content
    assert "<b>Trust ratios by layer</b> is not there." in content


@pytest.mark.slow
def test_what_the_shadow_has_seen_is_shown_and_said():
    recordings = recorded.healthy(1, 100, method=None)
    samples = [{"step": step, "base": 3.0 - step / 50, "method": 3.0 - step / 30} for step in range(1, 60)]
    text_ = "Shadow: SOAP would have needed 61% of the steps to the loss of the last ones, at 40% more time a step."
    recordings[0]["shadow"] = {
        "method": "SOAP(period=50)", "steps_share": 0.61, "seconds_share": 0.4, "samples": samples, "text": text_,
    }  # fmt: skip
    run = Run("a", recordings)
    (chart,) = [chart for chart in charts([run]) if chart.name == "shadow"]
    assert chart.said == text_
    assert set(chart.data["main"]["series"]) == {"the training", "SOAP on a copy"}
    assert ["share of the steps that it would have needed", "61%"] in chart.table.rows
    assert text_ in page([run]).split('<section id="part-loss"')[0]


@pytest.mark.slow
def test_a_run_of_one_step_is_a_page():
    assert "</html>" in page([Run("a", recorded.healthy(1, 16))])
    recordings = recorded.healthy(1, 16)
    recordings[0]["last"] = recordings[0]["whole"] = {}
    assert "</html>" in page([Run("a", recordings)])


@pytest.mark.parametrize("runs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_specification_is_one_of_vega_lite(runs):
    found = charts([Run(f"run {n}", recorded.healthy(2, 600, n)) for n in range(runs)])
    assert len(found) >= 20
    for chart in found:
        # Colours by name are the page's own: its script puts the colours in.
        spec = json.loads(re.sub(r'"var\(--\w+\)"', '"#123456"', json.dumps(chart.spec)))
        altair.Chart.from_dict({**spec, "width": "container", "datasets": {name: [{}] for name in chart.data}})
        for columns in chart.data.values():
            assert len({len(column) for column in columns.values()}) == 1


def test_names_of_runs_and_layers_are_data_and_no_part_of_what_is_run():
    """Vega runs expressions and reads field names as paths: strings of a run are in data and scales' domains alone."""

    def walk(part, path=()):
        if isinstance(part, dict):
            for name, each in part.items():
                yield from walk(each, (*path, name))
        elif isinstance(part, list):
            for each in part:
                yield from walk(each, path)
        else:
            yield path, part

    for chart in charts([Run(EVIL[9], evil()), Run(EVIL[0], evil())]):
        for path, value in walk(chart.spec):
            if isinstance(value, str) and any(name in value for name in EVIL):
                assert path[-1] == "domain", (chart.name, path)


@pytest.mark.parametrize("runs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_strings_of_a_run_stay_text(runs):
    content = page([Run(name, evil()) for name in EVIL[:runs]])
    seen = Seen(content)
    assert seen.tags.count("script") == 3
    assert "img" not in seen.tags
    assert not [name for name in seen.attributes if name.startswith("on")]
    whole = re.search(r'<script type="application/json" id="charts">(.*?)</script>', content, re.DOTALL)[1]
    assert not set("<>&\u2028\u2029") & set(whole)
    assert EVIL[1] in json.dumps(json.loads(whole), ensure_ascii=False)
    assert "\x00" not in content
    assert text(EVIL[1]) in content


def test_json_in_a_script_is_the_same_json():
    value = {name: [name] for name in EVIL}
    assert json.loads(data(value)) == value


@pytest.mark.slow
def test_two_runs_are_told_apart_and_what_differs_comes_first():
    runs = [Run("a", recorded.healthy(2, 300)), Run("b", recorded.healthy(1, 300, 1, method=None))]
    content = page(runs)
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th>(.*?)</tr>', content)
    differing = [name for name, cells in rows if "differs" in cells]
    assert {"method", "ranks", "strategy", "SOAP.period"} <= set(differing)
    assert "optimizer" not in differing
    assert {"trust-0", "trust-1", "loss", "gantt-0"} <= {chart.name for chart in charts(runs)}
    domains = {
        str(chart.spec["encoding"]["color"]["scale"]["domain"]) for chart in charts(runs) if "trust" in chart.name
    }
    assert len(domains) == 1


@pytest.mark.slow
def test_size_is_bounded():
    four = page([Run("a", recorded.healthy(4, 2000))])
    assert len(four.encode()) < 5e6
    many = [f"blocks.{n}.a.rather.long.name.of.a.weight" for n in range(400)]
    big = [Run("a", recorded.healthy(2, 4000, names=many))]
    assert len(page(big).encode()) < 5e6
    assert max(chart.marks for chart in charts(big)) <= 1.2 * MARKS
