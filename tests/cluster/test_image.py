"""The container image: docker/check.sh builds it for real, without a Docker engine, and says what holds."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CANNOT = 77
FACTS = {
    "hadolint", "compose", "user", "entrypoint", "version", "revision", "licence", "base_name", "size_mb", "setuid",
    "caches", "uid", "orphans", "plot", "sigterm", "sigterm_plain", "sigusr1",
}  # fmt: skip


@pytest.fixture(scope="module")
def lines():
    done = subprocess.run([ROOT / "docker" / "check.sh"], capture_output=True, text=True, timeout=1200)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    # 1 may be a fact that does not hold, which has a line; nothing else may go wrong.
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()] + [{"stderr": done.stderr[-3000:]}]


@pytest.mark.slow
def test_every_fact_of_the_image_holds(lines):
    facts = {line["fact"]: line for line in lines if "fact" in line}
    assert set(facts) == FACTS, lines[-1]["stderr"]
    assert [line for line in facts.values() if not line["holds"]] == [], lines[-1]["stderr"]


@pytest.mark.slow
def test_the_health_check_and_the_demo_ran(lines):
    assert {"health", "demo", "all"} <= {line.get("stage") for line in lines}, lines[-1]["stderr"]
