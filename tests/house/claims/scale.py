"""Claims of docs/explanation/scale.md: what the planner foretells of many ranks, and how far it is from real ones."""

from typing import Any

from tests.support.results import lines

PAGE = "docs/explanation/scale.md"


def foretold(model: str, method: str, strategy: str, ranks: int) -> dict[str, Any]:
    """A line of the scaling model."""
    wanted = {"model": model, "method": method, "strategy": strategy, "ranks": ranks}
    return [one for one in lines("scale") if wanted.items() <= one.items()][-1]


def small(method: str, strategy: str, ranks: int, part: str = "exchange_ms") -> float:
    """A part of GPT-125M's step."""
    return foretold("gpt_125m", method, strategy, ranks)[part]


def large(strategy: str, ranks: int) -> list[float]:
    """Of the 7B, by method: the mean step over AdamW's, exchanges in ms, GB without activations."""
    found = [foretold("llama_7b", method, strategy, ranks) for method in ("soap", "muon", "kfac")]
    return [
        value
        for one in found
        for value in (one["mean_ms"] / one["own_ms"], one["exchange_ms"], sum(one["memory"].values()) / 1e9)
    ]


def exchanges(method: str, strategy: str, *ranks: int) -> list[float]:
    """Exchanges of GPT-125M in ms, over ranks."""
    return [small(method, strategy, each) for each in ranks]


def ends(part: str, *strategies: tuple[str, int]) -> list[float]:
    """The least and the most of a part of the 7B's lines."""
    found = [foretold("llama_7b", m, *where)[part] for m in ("soap", "muon", "kfac") for where in strategies]
    return [min(found), max(found)]


def jitter(model: str | None = None) -> float:
    """The largest of a model's lines; of all models but ResNet-50 without one."""
    return max(one["jitter"] for one in lines("scale") if (one["model"] == "resnet50") == (model == "resnet50"))


def short(strategy: str) -> list[float]:
    """Percent by which steps of real ranks are foretold too short: the least and the most."""
    found = [-100 * one["off"]["step"] for one in lines("scale_measured") if one.get("strategy", "ddp") == strategy]
    return [min(found), max(found)]


RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
THOUSAND = ("fsdp", 1024)
CLAIMS = {
    PAGE: {
        f"| ms |{' {} |' * len(RANKS)}": [small("soap", "ddp", ranks, "solves_ms") for ranks in RANKS],
        "largest single unit**: {} ms here for SOAP, {} ms for K-FAC": [
            small(method, "ddp", 8, "floor_ms") for method in ("soap", "kfac")
        ],
        "over median) is {} and less": [jitter()],
        "up to {} with K-FAC": [jitter("resnet50")],
        **{
            f"| {name}, {called} | {'{}' if strategy != 'hsdp' else '-'} | {{}} | {{}} |": exchanges(
                method, strategy, *((64, 1024) if strategy == "hsdp" else (8, 64, 1024))
            )
            for name, method in (("SOAP", "soap"), ("Muon", "muon"), ("K-FAC", "kfac"))
            for called, strategy in (("DDP", "ddp"), ("HSDP", "hsdp"), ("FSDP2", "fsdp"))
        },
        **{
            f"| {head} |{' {}x, {}, {} GB |' * 3}": large(strategy, ranks)
            for head, strategy, ranks in (
                ("DDP, 64 ranks", "ddp", 64),
                ("HSDP, 64", "hsdp", 64),
                ("FSDP2, 64", "fsdp", 64),
                ("FSDP2, 1,024", "fsdp", 1024),
            )
        },
        "ranks take {} to {} s of CPU and {} GB": [
            *ends("plan_cpu_s", THOUSAND),
            ends("plan_peak_bytes", THOUSAND)[1] / 1e9,
        ],
        "Under FSDP2 and HSDP memory is right to {} %": [
            max(100 * abs(one["off"]["memory"]) for one in lines("scale_measured") if one["strategy"] != "ddp")
        ],
        "steps are foretold {} to {} % too short under DDP, {} to {} % under FSDP2, {} % under HSDP": [
            *short("ddp"),
            *short("fsdp"),
            short("hsdp")[0],
        ],
        "own step takes {} ms on 8 ranks and {} ms on 1,024": [small("soap", "fsdp", n, "own_ms") for n in (8, 1024)],
    },
}
#: What is set, and not measured.
GIVEN: dict[str, list[str]] = {}
