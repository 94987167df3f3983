"""A pytest plugin (`-p tests.support.recording`): writes down what the tests have trained, by what came of them.

A test that fails or is skipped covers nothing. Where workers run the tests, notes come with their reports.
"""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.support import compatibility, noted
from tests.support.peers import PEERS

KEY = "noted"


def pytest_addoption(parser):
    parser.addoption("--compatibility", type=Path, default=compatibility.DATA, help="the file to bring up to date")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Writer(config.getoption("--compatibility")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        report.user_properties.append((KEY, [compatibility.packed(note) for note in noted.taken()]))
    elif call.when == "teardown":
        noted.taken()
    return report


class Writer:
    """Collects what came of the tests, and writes it when all have run."""

    def __init__(self, path):
        self.path, self.tests = path, {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            notes = dict(report.user_properties).get(KEY, ()) if report.passed else ()
            self.tests[report.nodeid] = [compatibility.unpacked(note) for note in notes]

    def pytest_sessionfinish(self):
        record = compatibility.merged(compatibility.read(self.path), self.tests, made())
        compatibility.write(record, self.path)


def made():
    """Versions of what the tests ran with."""
    versions = {one.name: one.version for one in metadata.distributions(path=[str(PEERS), *sys.path])}
    return {name: versions[name] for name in ("torch", "pytorch-lightning", "deepspeed") if name in versions}
