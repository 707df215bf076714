"Many processes write at once, and some are killed: nothing that was acknowledged is lost, and everything stays readable."
import json, os, random, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ROOT
from mlproj.journal import facts, read_notes, runs_table, runs_text
from mlproj.ledger import Cache, Ledger, append_line, read_lines, verify_cache

ENV = os.environ | dict(PYTHONPATH=str(ROOT))

WRITER = """
import sys
from pathlib import Path
from mlproj.journal import add_note
from mlproj.ledger import Ledger, Run
folder, me, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
shared, ledger = Run("shared", folder/"shared"), Ledger(folder/"runs")
print("ready", flush=True)
sys.stdin.readline()
for i in range(n):
    shared.record("stage", stage=f"{me}-{i}", said="ü"*(i % 7)*50)
    add_note(folder, f"note {me}-{i}")
    run = ledger.start(dict(me=me, i=i), ["mlproj", "run"])
    run.record("finished", status="succeeded", seconds=0.1)
    print(i, run.id, flush=True)  # acknowledged
"""

def writer(folder, me, n) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(me), str(n)], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

def started_together(writers) -> None:
    for w in writers: assert w.stdout.readline() == "ready\n"
    for w in writers: w.stdin.write("\n"), w.stdin.flush()


def test_sixteen_processes_at_once_lose_nothing(tmp_path):
    (tmp_path/"shared").mkdir()
    writers = [writer(tmp_path, me, 15) for me in range(16)]
    started_together(writers)
    with ThreadPoolExecutor(16) as pool: said = list(pool.map(lambda w: w.communicate(timeout=120)[0], writers))
    ids = [line.split()[1] for text in said for line in text.splitlines()]
    everything = {f"{me}-{i}" for me in range(16) for i in range(15)}
    lines = read_lines(tmp_path/"shared"/"events.jsonl")
    assert sorted(e["stage"] for e in lines) == sorted(everything) and (tmp_path/"shared"/"events.jsonl").read_bytes().count(b"\n") == len(lines)
    assert sorted(e["text"] for e in read_notes(tmp_path)) == sorted(f"note {each}" for each in everything)
    runs = Ledger(tmp_path/"runs").runs()
    assert len(set(ids)) == 240 == len(runs) and {r.id for r in runs} == set(ids)
    assert {r.status for r in runs} == {"succeeded"} and {(f["me"], f["i"]) for f in map(facts, runs)} == {tuple(int(n) if j else n for j, n in enumerate(each.split("-"))) for each in everything}


@pytest.mark.parametrize("seed", range(3))
def test_a_writer_killed_at_any_moment_loses_nothing_that_it_acknowledged(tmp_path, seed):
    rng, acknowledged = random.Random(seed), set()
    (tmp_path/"shared").mkdir()
    for turn in range(5):
        writers = [writer(tmp_path, f"{turn}.{me}", 100_000) for me in range(3)]
        started_together(writers)
        time.sleep(rng.uniform(0.01, 0.3))
        for w in writers: w.kill()
        acknowledged |= {f"{turn}.{me}-{line.split()[0]}" for me, w in enumerate(writers) for line in w.communicate()[0].split("\n")[:-1]}
        ledger = Ledger(tmp_path/"runs")  # what the next process finds
        assert acknowledged <= {e["stage"] for e in read_lines(tmp_path/"shared"/"events.jsonl")}
        assert {f"note {each}" for each in acknowledged} <= {e["text"] for e in read_notes(tmp_path)}
        found = {f"{f['me']}-{f['i']}": f["status"] for f in map(facts, ledger.runs())}
        assert {found[each] for each in acknowledged} <= {"succeeded"} and set(found.values()) <= {"succeeded", "unfinished"}
        assert runs_text(runs_table(ledger, last=1000), 100).count("\n") == len(found)
    assert acknowledged


def test_a_line_torn_anywhere_is_left_out_and_the_next_one_is_whole(tmp_path):
    line = json.dumps(dict(n=1, text='{"a": "}', more=dict(x=[1, 2, {"y": "ü}"}]), end={}), ensure_ascii=False).encode()
    for cut in range(1, len(line)):
        path = tmp_path/f"{cut}.jsonl"
        append_line(path, dict(n=0))
        with path.open("ab") as file: file.write(line[:cut])
        assert [e["n"] for e in read_lines(path)] == [0], line[:cut]
        append_line(path, dict(n=2))
        assert [e["n"] for e in read_lines(path)] == [0, 2], line[:cut]


def test_a_disk_that_is_full_in_the_middle_of_a_line_is_an_error(tmp_path):
    "The limit on the size of a file stands for the disk: both cut a write short."
    code = """
import resource, signal, sys
from mlproj.ledger import append_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30, resource.RLIM_INFINITY))
append_line(sys.argv[1], dict(n=0))
try: append_line(sys.argv[1], dict(n=1, text="x"*50))
except OSError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path/"events.jsonl")], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0 and "No space left on device" in done.stdout and "events.jsonl" in done.stdout, done.stderr
    append_line(tmp_path/"events.jsonl", dict(n=2))
    assert [e["n"] for e in read_lines(tmp_path/"events.jsonl")] == [0, 2]


STAGES = """
import sys, time
from pathlib import Path
from mlproj.ledger import Cache, write_manifest
from mlproj.project import folder_atomic
cache = Cache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
made = 0
for n in range(int(sys.argv[2])):
    key = f"{n % 40:064x}"
    with cache.locked(key):
        if cache.get(key) is None:
            with folder_atomic(cache.path/key) as folder:
                for i in range(5): (folder/f"part{i}").write_bytes(bytes([n % 40])*20_000)
                write_manifest(folder, stage="train", key=key)
            made += 1
            print(key, flush=True)
"""

def test_sixteen_processes_share_a_cache_and_make_each_entry_once(tmp_path):
    workers = [subprocess.Popen([sys.executable, "-c", STAGES, str(tmp_path/"cache"), "40"], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    started_together(workers)
    with ThreadPoolExecutor(16) as pool: made = [key for text in pool.map(lambda w: w.communicate(timeout=120)[0], workers) for key in text.split()]
    assert len(made) == 40 == len(set(made)) and not verify_cache(tmp_path/"cache")


def test_a_cache_whose_writers_are_killed_has_only_whole_entries(tmp_path):
    rng, cache = random.Random(0), Cache(tmp_path/"cache")
    for turn in range(12):
        workers = [subprocess.Popen([sys.executable, "-c", STAGES, str(cache.path), "100000"], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        started_together(workers)
        time.sleep(rng.uniform(0, 0.15))
        for w in workers: w.kill(), w.communicate()
        assert not verify_cache(cache.path)
        for entry in cache.path.glob("0*"):
            assert {p.read_bytes() for p in entry.glob("part*")} == {bytes([int(entry.name, 16)])*20_000}, "a wrong entry"
    entry = next(cache.path.glob("0*"))
    (entry/"part3").chmod(0o644), (entry/"part3").write_bytes(b"damaged")
    assert verify_cache(cache.path) == [entry.name] and cache.get(entry.name) is None and not entry.exists()


def test_a_damaged_line_in_the_middle_is_said(tmp_path):
    (tmp_path/"events.jsonl").write_text('{"n": 1}\n{"n": oops}\n{"n": 3}\n')
    from mlproj.project import MlprojError
    with pytest.raises(MlprojError, match="events.jsonl: line 2 is damaged; restore the file from a backup"): read_lines(tmp_path/"events.jsonl")
