"""`make bench-gpu`: the order of its parts, its deadline, what a part that fails does to the others, and its table."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks.shared.methods import Settings, build
from benchmarks.shared.problems import load
from benchmarks.steps import gpu, gpu_table, one_process
from benchmarks.steps.gpu import Outcome, Part, bench, parts, summary
from tests.support.forked import module

TESTS = gpu.ROOT / "tests"
#: What skips a test without a device says so; such tests are in files of their own.
NEEDS = 'reason="needs a CUDA ' + 'device"'


class Clock:
    """A clock that parts move on."""

    def __init__(self, **takes):
        self.now, self.takes, self.asked = 100.0, takes, []

    def __call__(self):
        return self.now

    def start(self, command, limit):
        """As long as is said, or its limit; status 3 of one that is called `bad`."""
        name = command[0]
        self.asked.append((name, limit, *command[1:]))
        self.now += min(self.takes[name], limit)
        if self.takes[name] > limit:
            raise subprocess.TimeoutExpired(command, limit)
        return 3 if name == "bad" else 0


def done(todo, deadline, **takes):
    clock = Clock(**takes)
    return bench(todo, deadline, clock.start, clock), clock.asked


def part(name, limit=60, least=30):
    return Part(name, [name, "--seconds", "{seconds}"], limit, least)


def test_a_part_that_fails_or_is_too_slow_is_named_and_the_others_go_on():
    outcomes, asked = done([part("bad"), part("slow"), part("good")], 300, bad=5, slow=90, good=10)
    assert [one[0] for one in asked] == ["bad", "slow", "good"]
    assert [one.state for one in outcomes] == ["failed", "failed", "done"]
    assert summary(outcomes).splitlines() == [
        "failed    bad 5 s exit status 3",
        "failed    slow 60 s not done after 60 s",
        "done      good 10 s",
    ]


def test_what_does_not_fit_before_the_deadline_is_left_out_and_named():
    todo = [part("one"), part("two", least=50), part("three")]
    outcomes, asked = done(todo, 100, one=55, two=1, three=20)
    # After 55 of 100 seconds the second would need 50; the third gets what is left.
    assert asked == [("one", 60, "--seconds", "35"), ("three", 45, "--seconds", "20")]
    assert [one.state for one in outcomes] == ["done", "left out", "done"]
    assert "left out  two 45 s were left of 100" in summary(outcomes)


@pytest.mark.slow
def test_a_part_that_is_too_slow_is_ended_with_all_that_it_has_started(tmp_path):
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    code += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); p.wait()"
    with pytest.raises(subprocess.TimeoutExpired):
        gpu.started(["-c", code], 3)
    stat, patience = Path("/proc", (tmp_path / "pid").read_text(), "stat"), time.monotonic() + 20
    # Killed is not yet gone: the kernel takes its moment.
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < patience
        time.sleep(0.05)
    assert gpu.started(["-c", "raise SystemExit(3)"], 30) == 3


@pytest.mark.parametrize(("states", "status"), [("done done", 0), ("done failed", 1), ("done left_out", 0)])
def test_the_exit_status_tells_whether_any_part_has_failed(states, status, monkeypatch, tmp_path):
    outcomes = [Outcome(part(state), state.replace("_", " ")) for state in states.split()]
    monkeypatch.setattr(gpu, "bench", lambda *_: outcomes)
    monkeypatch.setattr(gpu_table, "write", lambda: pytest.fail("a CPU's lines are no table of a GPU"))
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--out", str(tmp_path)])
    assert gpu.main() == status


def test_no_part_outlives_the_deadline():
    todo = parts("cuda", gpu_table.RESULTS, "now", quick=False)
    clock = Clock()
    clock.takes = dict.fromkeys(["-m"], 1e9)
    bench(todo, gpu.DEADLINE, clock.start, clock)
    assert clock.now - 100 <= gpu.DEADLINE < 9 * 60
    # Were all to need all of their time, most would still be begun.
    assert len(clock.asked) >= len(todo) - 2


def test_the_tests_come_first_then_bases_then_steps_from_few_tokens_to_many():
    todo = parts("cuda", gpu_table.RESULTS, "now", quick=False)
    batches = [f"byte_lm_large, batches of {n}" for n in (32, 128, 256)]
    small = ["byte_lm, batches of 16", "autoencoder, batches of 256", "cnn, batches of 128"]
    assert [one.name for one in todo] == ["tests", "bases", *batches, *small]
    needing = {str(path.relative_to(gpu.ROOT)) for path in TESTS.glob("**/test_*.py") if NEEDS in path.read_text()}
    assert {word for word in todo[0].command if word.endswith(".py")} == needing
    for one in todo[1:]:
        assert one.command[one.command.index("--device") + 1] == "cuda"
        assert one.command[one.command.index("--seconds") + 1] == "{seconds}"


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path):
    done = module(tmp_path, "benchmarks.steps.gpu", "--device", "cpu", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    states = [line.split()[0] for line in done.stdout.splitlines()[-3:]]
    assert states == ["done"] * 3
    lines = [json.loads(line) for line in (tmp_path / "one_process_gpu.jsonl").read_text().splitlines()]
    assert len(lines) == len(gpu.VARIANTS) + len(gpu.PADDING)
    assert {line["made"] for line in lines} == {3}
    assert len({line["run"] for line in lines}) == 1
    assert all(line["loss"] > 0 for line in lines)
    table = gpu_table.rendered(gpu_table.read(tmp_path / "one_process_gpu.jsonl"))
    assert "| autoencoder | 8 images |" in table
    assert "| autoencoder | 8 images, `padding=apart` |" in table
    said = {line["variant"]: line["ways"] for line in lines}
    assert "shapes padded" in said["muon:padding=padded"]
    assert said["muon:padding=apart"] == said["muon"] == ""
    assert len((tmp_path / "bases.jsonl").read_text().splitlines()) == 9


def test_one_device_that_is_missing_is_said(tmp_path):
    done = module(tmp_path, "benchmarks.steps.gpu", "--device", "cuda", "--deadline", "1")
    if done.returncode == 2:
        assert "torch finds no CUDA device here: --device cpu --quick" in done.stderr


# ---------------------------------------------------------------- a variant that fails


def test_a_variant_that_fails_is_named_and_the_others_go_on(tmp_path):
    out = tmp_path / "lines.jsonl"
    tiny = ["--problem", "autoencoder", "--batch-size", "4", "--steps", "3", "--repeats", "1", "--out", str(out)]
    done = module(tmp_path, "benchmarks.steps.one_process", *tiny, "--variants", "adamw", "muon:nothing=1", "muon")
    assert done.returncode == 1
    assert "muon:nothing=1 failed: TypeError" in done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert ["failed" in line for line in lines] == [False, True, False]
    table = gpu_table.rendered([{**line, "variant": line["variant"].replace(":nothing=1", "")} for line in lines[:2]])
    assert "| autoencoder | 4 images |" in table
    assert "| failed |" in table


def test_steps_end_with_the_time_and_all_variants_after_the_same():
    records = one_process.measure(
        load("autoencoder", batch_size=4), ["adamw", "muon"], Settings(1e-3, steps=50), 1, seconds=0
    )
    assert [r["made"] for r in records] == [2, 2]
    assert [len(r["step_ms"]) for r in records] == [2, 2]


def test_options_of_attach_are_given_to_it():
    model = load("autoencoder").model(0)
    settings = Settings(1e-3, options=(("lag", 1), ("period", 7)))
    engine = build("soap", model, settings).engine
    assert (engine.options.lag, engine.parts.methods[0].period) == (1, 7)


# ---------------------------------------------------------------- the table


def line(variant, ms, **more):
    first = {"problem": "byte_lm_large", "batch_size": 128, "device": "a card", "torch": "2.11", "run": "now"}
    return {**first, "variant": variant, "step_ms": [99.0, *ms], "loss": 1.5, **more}


def test_the_page_is_what_the_lines_say():
    text = gpu_table.rendered(gpu_table.read())
    assert text in gpu_table.PAGE.read_text(), "write it anew: python -m benchmarks.steps.gpu_table"


def test_ratios_are_of_means_to_the_second_adamw_without_the_first_step():
    lines = [line("adamw", [50, 50]), line("adamw", [10, 10, 10]), line("soap:start=8", [12, 12, 21], loss=1.25)]
    lines += [line("soap:start=8:max_overhead=0.1", [11, 11, 11])]
    (row, budget) = gpu_table.rendered(lines).splitlines()[4:6]
    assert row == "| byte_lm_large | 32,768 tokens | 10.0 ms, 1.00, 1.5 | - | - | 1.50x, 1.75, 1.25 | - | - | - |"
    assert budget == "| byte_lm_large | 32,768 tokens, `max_overhead=0.1` |  | - | - | 1.10x, 1.00, 1.5 | - | - | - |"


def test_the_table_is_of_the_last_run_and_says_where_there_is_no_run(tmp_path):
    path, page = tmp_path / "lines", tmp_path / "page.md"
    older = [{k: v for k, v in line("adamw", [20, 20]).items() if k != "run"}]
    path.write_text("".join(json.dumps(one) + "\n" for one in older))
    page.write_text(f"before\n{gpu_table.BEGIN}\nold\n{gpu_table.END}\nafter\n")
    gpu_table.write(page, path)
    assert "20.0 ms" in page.read_text()
    assert "a card, torch 2.11; lines of before there was `make bench-gpu`" in page.read_text()
    path.write_text("".join(json.dumps(one) + "\n" for one in [*older, line("adamw", [30, 30])]))
    gpu_table.write(page, path)
    text = page.read_text()
    assert "30.0 ms" in text
    assert "run of now" in text
    assert "20.0 ms" not in text
    assert (text.startswith("before\n"), text.endswith("\nafter\n"), "old" in text) == (True, True, False)


@pytest.mark.parametrize("problem", ["byte_lm", "autoencoder", "cnn"])
def test_usual_sizes_of_the_table_are_those_of_the_problems(problem):
    found = load(problem)
    batch, _ = found.batch(torch.Generator().manual_seed(0))
    of_table = gpu_table.size({"problem": problem})
    assert of_table.split()[0].replace(",", "") == str(batch.numel() if problem in gpu_table.BYTES else len(batch))
