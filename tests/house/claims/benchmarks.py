"""Claims of benchmarks/README.md: its tables of the family, of peers, of memory and of ranks."""

from statistics import mean, median

from benchmarks.anywhere import shares
from benchmarks.curvature import landscapes
from benchmarks.steps.unequal import CASES
from tests.house.claims.explanation import sharded, spikes
from tests.house.claims.methods import TORCH_MUON, ends
from tests.support.results import best, held, line, lines, peers, state, steps_to, suite

PAGE, GRID = "benchmarks/README.md", "grid_byte_lm"
FAMILY = ("soap", "muon", "kfac", "ekfac", "shampoo")
ON_SGD = ("kfac_sgd", "ekfac_sgd")
NAMES = {"soap": "SOAP", "kfac": "K-FAC", "ekfac": "EKFAC", "shampoo": "Shampoo", "muon": "Muon"}
SHARED = {"fsdp": "FSDP2, byte LM, ", "hsdp": "HSDP, byte LM, "}
PEERS = ("byte_lm", "autoencoder", "cnn")


def named(problem: str, head: str, rates: list[str], bold: int) -> dict[str, list[float]]:
    """A row of the family's table: losses at their best rates."""
    cells = [f"**{{}}** ({rate})" if place == bold else f"{{}} ({rate})" for place, rate in enumerate(rates)]
    return {f"| {head} | {' | '.join(cells)} |": [ends(method, problem) for method in FAMILY]}


def beside(problem: str) -> dict[str, list[float]]:
    """A row of the suite's table: AdamW's loss, ratios of the others."""
    runs, cells, values = suite(), [], []
    adamw = median(shares.losses(runs.at(problem, "adamw")))
    for method in ("torch_muon_adamw", *FAMILY, "sgd", *ON_SGD):
        ratio = shares.ratio(runs, problem, method, 1.0)
        cells.append("refused" if ratio is None else "**{}**" if ratio > 1.01 else "{}")
        values += [] if ratio is None else [ratio]
    return {f"| `{problem}` | {{}} | {' | '.join(cells)} |": [adamw, *values]}


def summary(method: str, called: str) -> dict[str, list[float]]:
    """A row of the suite's second table."""
    part, cells, middle = held(method)
    found = shares.summary(suite(), method)
    (problem, times), worst = max(found.same.items(), key=lambda item: item[1])
    timed = shares.share(suite(), method, found.timed)
    assert timed is not None
    row = f"| {called} | {{}} | {{}} % | {{}} | {{}}, `{problem}` x{times:g} | {{}} % |"
    return {row: [cells, part, middle, worst, 100 * timed]}


def shared() -> dict[str, list[float]]:
    """The rows of shares of curvature under DDP."""
    return {
        f"| {NAMES[one['method']]}, {one['ranks']}, {one['share']:g} | {{}} | {{}} / {{}} | {{}} |": [
            one["curvature"] / 1e6,
            one["sent"] / 1e3,
            one["predicted"] / 1e3,
            one["cpu_ms"],
        ]
        for one in lines("memory_share")
    }


def scaled() -> dict[str, list[float]]:
    """The rows of the scaling model beside real ranks."""
    rows = {}
    for one in lines("scale_measured"):
        seen, said, off = one["measured"], one["planned"], 100 * one["off"]["step"]
        cell = "**{} %**" if abs(off) > 20 else "{} %"
        where = SHARED.get(one.get("strategy"), "") + one["link"]
        rows[f"| {NAMES[one['method']]} | {where} | {one['ranks']} | {'{} / {} | ' * 4}{cell} |"] = [
            *(side["memory"] / 1e6 for side in (seen, said)),
            *(side["sent"] / 1e3 for side in (seen, said)),
            *(side["cpu"] for side in (seen, said)),
            *(side["wire"] for side in (seen, said)),
            off,
        ]
    return rows


def modes_of_memory() -> dict[str, list[float]]:
    """The rows of what modes of memory hold and take."""
    rows = {}
    for one in lines("memory_held"):
        mode = one["mode"] if one["mode"] == "in full" else f"`{one['mode']}`"
        rows[f"| {NAMES[one['method']]}, {mode} | {{}} | {{}} | {{}} | {{}} |"] = [
            one[k] for k in ("between", "inside", "foretold", "time")
        ]
    del rows["| EKFAC, `Memory()` | {} | {} | {} | {} |"]  # As SOAP's.
    off = sorted(100 * (one["foretold"] / one["inside"] - 1) for one in lines("memory_held"))
    return rows | {"What is foretold is off by {} to {} %, but for": [off[0], off[-3]]}


def later(part: str) -> list[float]:
    """Percent by which staggered solves are longer than the burst, of three runs."""
    ours, theirs = (
        [one[part] for one in lines("staggered_1gbit") if one["variant"] == variant]
        for variant in ("staggered", "burst")
    )
    return [100 * (a / b - 1) for a, b in zip(ours, theirs, strict=True)]


def slowest(variant: str, clock: str) -> float:
    """Largest over median step of the first run on two ranks."""
    one = next(one for one in lines("ddp") if one["variant"] == variant)
    return one[f"{clock}largest_ms"] / one[f"{clock}median_ms"]


def unequal(ranks: int, method: str, head: str, throttle: str = "counted") -> dict[str, list[float]]:
    """A row of ranks of which one is slow."""
    found = [line("unequal", ranks=ranks, method=method, case=case, throttle=throttle) for case in CASES]
    even, without, balanced = (one["slowest_over_mean"] for one in found)
    figures = [without, balanced, found[2]["moved"], even, found[0]["moved"]]
    return {f"| {head} | {{}} | {{}} | {{}} | {{}} | {{}} |": figures}


def both(overlapped: str) -> list[float]:
    """What is waited for, and a mean step, of two runs."""
    found = [one for one in lines("overlap") if one["overlapped"] == overlapped]
    return [one[part] for part in ("mean_wait_ms", "mean_step_ms") for one in found]


def known_shapes() -> dict[str, list[float]]:
    """The table that `landscapes` prints, word by word: it has no figures to fill in."""
    rows = landscapes.markdown(landscapes.table(lines("landscapes"))).splitlines()
    return {row: [] for row in rows[2:]}


def contender(name: str, ours: bool) -> dict[str, list[float]]:
    """A row of peers: loss, steps and state."""
    cells, values = [], []
    for problem in PEERS:
        sweep = peers(problem)[name]
        finals = sweep.best.finals
        several = len(finals) > 1
        edge = " (edge)" if sweep.edge else ""
        cells += [("{} ({} to {}), {}" if several else "{} (one seed), {}") + edge, "{}"]
        values += [sweep.best.loss, *([min(finals), max(finals)] if several else []), sweep.best.lr, sweep.over_adamw]
    called = f"**{name}**" if ours else name
    return {f"| {called} | {' | '.join(cells)} | {{}} |": [*values, state(name)]}


CLAIMS = {
    PAGE: modes_of_memory()
    | {
        "6, 1e-3 to 2e-2 | {} (5e-3) | {} (2e-2) | **{}** (1e-2) | {} (2e-2) |": [
            ends(method, "autoencoder") for method in ("adamw", TORCH_MUON, "soap", "muon")
        ],
        "6, 1e-3 to 2e-2 | **{}** (2e-2) | {} (2e-2) | {} (5e-3) | {} (5e-3) |": [
            ends(method, "cnn") for method in ("adamw", TORCH_MUON, "soap", "muon")
        ],
        "after {} steps and in 1 / {} of its CPU time": [
            steps_to("kfac", 0.01),
            mean(run["cpu_seconds"] for run in best(GRID, "adamw").runs) / steps_to("kfac", 0.01, part="seconds"),
        ],
        **named("byte_lm", "byte LM", ["5e-3", "1e-2", "1e-2", "5e-3, 1e-2", "1e-2"], 2),
        **named("autoencoder", "autoencoder on digits", ["1e-2", "2e-2", "1e-2", "1e-2", "1e-2"], 3),
        **named("cnn", "CNN on digits", ["5e-3", "5e-3", "1e-2", "1e-2", "5e-3"], 9),
        **{text: row for problem in suite().problems for text, row in beside(problem).items()},
        **summary("soap", "SOAP"),
        **summary("muon", "Muon"),
        **summary("kfac", "K-FAC"),
        **summary("ekfac", "EKFAC"),
        **summary("shampoo", "Shampoo"),
        **summary("torch_muon_adamw", "torch's Muon, three rates"),
        **summary("kfac_sgd", "K-FAC on SGD"),
        **summary("ekfac_sgd", "EKFAC on SGD"),
        "staggered {}, {}, {}, burst {}, {}, {}, AdamW itself {}, {}, {} (": [
            one["largest_over_median"]
            for variant in ("staggered", "burst", "AdamW")
            for one in lines("staggered_1gbit")
            if one["variant"] == variant
        ],
        "median step of staggered solves is {} % longer": [mean(later("median_ms"))],
        "% longer, the mean {} to {} %": [of(later("mean_ms")) for of in (min, max)],
        "lowers the burst's figure ({} to {})": spikes("burst, lag=1"),
        "wall time: AdamW {}, SOAP {}, Muon {}. In CPU time of the slowest rank: {}, {}, {}.": [
            slowest(variant, clock) for clock in ("wall_", "") for variant in ("adamw", "soap", "muon")
        ],
        "A rank sends {} bytes a step for SOAP once the interval is at its largest, as predicted to the byte ({} on": [
            line("ddp", variant="soap")[part] for part in ("sent_settled_bytes", "sent_mean_bytes")
        ],
        "the mean of the 400 steps), Muon {}, beside DDP's own {} of gradients": [
            line("ddp", variant="muon")[part] for part in ("sent_settled_bytes", "gradient_bytes")
        ],
        "staggered sends {} kB a step, the burst {}.": [
            line("staggered_1gbit", variant=variant)["sent_mean_bytes"] / 1e3 for variant in ("staggered", "burst")
        ],
        "(`ddp_so`) | {}, {} | {}, {} |": both("statistics"),
        "(`lag=1`) | {}, {} | {}, {} |": both("solves"),
        "| neither | {}, {} | {}, {} |": both("neither"),
        "| both | {}, {} | {}, {} |": both("both"),
        "| SOAP | 1, 2, 4 | {}, {}, {} | {}, {}, {} | {}, {}, {} | {}, {}, {} | as": [
            size for part in ("curvature", "saved", "work space", "whole") for size in sharded(part)
        ],
        "| K-FAC on AdamW | 1, 2, 4 | {}, {}, {} | {}, {}, {} | {}, {}, {} | {}, {}, {} | {}, {}, {} |": [
            size for part in ("curvature", "saved", "work space", "whole", "largest") for size in sharded(part, "kfac")
        ],
        **known_shapes(),
        **unequal(2, "soap", "SOAP, 2 ranks"),
        **unequal(4, "soap", "SOAP, 4 ranks"),
        **unequal(2, "kfac", "K-FAC, 2 ranks"),
        **unequal(4, "kfac", "K-FAC, 4 ranks"),
        **unequal(2, "soap", "SOAP, 2 ranks, half a core", "cgroup"),
        **unequal(2, "kfac", "K-FAC, 2 ranks, half a core", "cgroup"),
        **shared(),
        **scaled(),
        "The bytes of a cable are modelled to {} %": [
            max(
                100 * abs(one["planned"]["wire"] / one["measured"]["wire"] - 1)
                for one in lines("scale_measured")
                if one["measured"]["wire"]
            )
        ],
    },
}
for _name in peers("byte_lm"):
    CLAIMS[PAGE] |= contender(_name, _name in FAMILY)
#: What is set, and not measured.
GIVEN = {
    PAGE: [
        "asked are 10 % of memory, 20 % of bytes and steps",
        "It is 3.11's, and 3.12's",
        "| alone | SGD 0.99 |",
        "Models of less than 10 ms a step",
    ]
}
