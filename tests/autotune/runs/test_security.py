"""What a run never does, by Python's own audit events in coordinator, host and trials.

The guard starts without the hook: it reads a pipe, and kills.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECORDED = Path(__file__).parents[3] / "notebooks" / "recorded_study.db"
# Writes down what may matter. Source of the names: the table of audit events in Python's manual.
AUDIT = """
import json, os, stat, sys

NAMES = (
    "socket.bind", "socket.connect", "socket.getaddrinfo", "pickle.find_class",
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
)
log = os.open(os.environ["TEST_AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(event, arguments):
    if event in NAMES:
        found = {"event": event, "arguments": [repr(argument) for argument in arguments]}
        if event == "socket.bind" and isinstance(arguments[1], str):
            status = os.stat(os.path.dirname(arguments[1]))
            found["directory"] = [oct(stat.S_IMODE(status.st_mode)), status.st_uid]
        os.write(log, json.dumps(found).encode() + b"\\n")

sys.addaudithook(note)
"""


@pytest.fixture
def audited(tmp_path, monkeypatch):
    """Gives what runs Python, and tells what its processes did, by the names of the events."""
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "sitecustomize.py").write_text(AUDIT)
    log = tmp_path / "audit.jsonl"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "audit"))
    monkeypatch.setenv("TEST_AUDIT_LOG", str(log))

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = {}
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            found.setdefault(entry["event"], []).append(entry)
        log.unlink()
        return found

    return run


def test_no_network_no_shell_no_pickle(study, audited):
    found = audited("-m", "autotune", "run", *study(sampler="auto", max_trials=2))
    # The socket is in a directory that only its user can enter, and all others connect to it.
    [bound] = found.pop("socket.bind")
    assert bound["directory"] == ["0o700", os.getuid()]
    path = bound["arguments"][1]
    connected = found.pop("socket.connect")
    assert len(connected) > 4
    assert {entry["arguments"][1] for entry in connected} == {path}
    assert not Path(ast.literal_eval(path)).exists()
    # The guard, and the command as it was given.
    started = [entry["arguments"][0] for entry in found.pop("subprocess.Popen")]
    assert len(started) > 2
    assert set(started) == {repr(sys.executable)}
    assert found == {}


READ = """
import sys
from autotune.cli import cli
for command in (["show"], ["report", "-o", "page.html"], ["export", "-o", "trials.parquet"]):
    cli.main([*command, "--storage", sys.argv[1]], standalone_mode=False)
"""


def test_reading_a_study_starts_nothing_and_asks_nobody(audited, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert audited("-c", READ, str(RECORDED)) == {}
    assert {path.name for path in tmp_path.iterdir()} >= {"page.html", "trials.parquet"}
