"W&B's server is down, refuses, hangs, breaks, or works: the run's result, exit code and time do not depend on it."
import gzip, json, os, socket, subprocess, sys, threading, time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conftest import ROOT

pytest.importorskip("wandb")


@contextmanager
def absent():
    "A port where nobody listens."
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    yield f"http://127.0.0.1:{port}", []


@contextmanager
def hanging():
    "Takes every connection, and never answers."
    connections = []
    def accept():
        while True:
            try: connections.append(server.accept())
            except OSError: return
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", connections
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def answering(status: int):
    "Answers every request with this status; 200 as W&B's server would, as far as its client looks."
    requests, bucket = [], dict(id="x", name="run", displayName="run", config="{}", project=dict(id="p", name="p", entity=dict(id="e", name="e")), historyLineCount=0)
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def answer(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            requests.append((self.path, gzip.decompress(body).decode() if self.headers.get("content-encoding") == "gzip" else body.decode(errors="replace")))
            said = dict(data=dict(upsertBucket=dict(bucket=bucket, inserted=True), createRunFiles=dict(runID="x", uploadHeaders=[], files=[]))) if status == 200 else dict(errors=[dict(message="not you")])
            text = json.dumps(said).encode()
            self.send_response(status)
            for head in (("content-type", "application/json"), ("content-length", str(len(text)))): self.send_header(*head)
            self.end_headers()
            self.wfile.write(text)
        do_GET = do_POST = do_PUT = answer
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    server.server_close()


RUN = """
import json, logging, os, psutil, signal, sys, time
from pathlib import Path
from mlproj.tracking import finish_wandb, wandb_logger
said = []
class Keep(logging.Handler):
    def emit(self, record): said.append(record.getMessage())
logging.getLogger("mlproj").addHandler(Keep())
for folder, url, mode, seconds, die in json.loads(sys.argv[1]):
    os.environ["WANDB_BASE_URL"] = url
    Path(folder).mkdir(parents=True)
    logger = wandb_logger(folder, "flights", "run", mode, dict(lr=0.1))
    for step in range(4):
        begun = time.monotonic()
        logger.log_metrics(dict(val_average_precision=step/10), step)
        time.sleep(0.1)
        if die and step == 1:
            for child in psutil.Process().children(recursive=True):
                if "wandb-core" in child.name(): os.kill(child.pid, signal.SIGKILL)
            time.sleep(0.5)
    begun = time.monotonic()
    finish_wandb(logger, seconds, dict(test_average_precision=0.41))
    print(json.dumps(dict(folder=folder, waited=time.monotonic() - begun, said=said[:])))
    said.clear()
"""

def tracked(folder, *scenarios) -> tuple[list[dict], str]:
    "A process that logs through W&B, once for each (name, url, mode, seconds, whether W&B's own process is killed); what each time was said, and stderr."
    env = os.environ | dict(WANDB_API_KEY="a"*40, HOME=str(folder), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", RUN, json.dumps([[str(folder/name), *rest] for name, *rest in scenarios])], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    "All servers, one after the other: what was said, how long the end took, and what the servers were asked."
    folder = tmp_path_factory.mktemp("wandb")
    with absent() as no, hanging() as mute, answering(500) as broken, answering(401) as refusing, answering(200) as working, answering(200) as unasked:
        found, stderr = tracked(folder, ("absent", no[0], "online", 10, False), ("hanging", mute[0], "online", 10, False), ("broken", broken[0], "online", 10, False),
                                ("refusing", refusing[0], "online", 1000, False), ("working", working[0], "online", 1000, False), ("offline", unasked[0], "offline", 1000, False))
    assert "Traceback" not in stderr and mute[1]
    return {os.path.basename(each["folder"]): each for each in found} | dict(requests=working[1], unasked=unasked[1], root=folder)


@pytest.mark.parametrize("server", ["absent", "hanging", "broken"])
def test_a_server_that_does_not_answer_is_one_line_and_is_waited_for_no_longer_than_told(seen, server):
    [said] = seen[server]["said"]
    assert "is still being sent in the background" in said and "wandb sync" in said
    assert seen[server]["waited"] < 5 and list((seen["root"]/server).rglob("*.wandb"))  # 3% of ten seconds, on a busy machine


def test_a_server_that_refuses_is_told_with_its_words(seen):
    [said] = seen["refusing"]["said"]
    assert "was not sent (not you); send it later with `wandb sync`" in said and list((seen["root"]/"refusing").rglob("*.wandb"))


def test_a_server_that_works_gets_history_summary_and_config(seen):
    assert seen["working"]["said"] == []
    sent = [json.loads(body) for path, body in seen["requests"] if path.endswith("file_stream")]
    history = [json.loads(line) for each in sent for line in each.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])]
    assert [row["val_average_precision"] for row in history] == [0, 0.1, 0.2, 0.3]
    summary = json.loads([each["files"]["wandb-summary.json"]["content"] for each in sent if "wandb-summary.json" in each.get("files", {})][-1][-1])
    assert summary["test_average_precision"] == 0.41
    assert any("UpsertBucket" in body and '\\"lr\\"' in body for path, body in seen["requests"] if path == "/graphql")


def test_offline_asks_nobody(seen): assert seen["unasked"] == [] and seen["offline"]["said"] == []


def test_wandbs_own_process_may_be_killed_in_the_middle(tmp_path):
    with absent() as (url, _): [found], stderr = tracked(tmp_path, ("killed", url, "offline", 10, True))
    [said] = found["said"]
    assert "W&B has stopped" in said and "the run goes on" in said and "Traceback" not in stderr, stderr


def test_no_wandb_is_a_warning(monkeypatch, tmp_path, caplog):
    from mlproj.tracking import finish_wandb, wandb_logger
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert wandb_logger(tmp_path, "p", "r", "online", {}) is None
    finish_wandb(None, 1)
    assert "W&B cannot start" in caplog.text and "the run goes on" in caplog.text


def test_what_sends_ends_soon_after_a_run_that_was_killed(tmp_path):
    "The one who minds it is told by the death of its parent."
    code = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'from mlproj.tracking import mind; import sys; mind(sys.argv[1:], 0.5)', sys.executable, '-c', %r]); time.sleep(60)"
    beat = f"import time, pathlib\nwhile True: pathlib.Path({str(tmp_path/'beat')!r}).write_text(str(time.time())); time.sleep(0.05)"
    run = subprocess.Popen([sys.executable, "-c", code % beat], env=os.environ | dict(PYTHONPATH=str(ROOT)))
    until = time.monotonic() + 30
    while not (tmp_path/"beat").exists() and time.monotonic() < until: time.sleep(0.05)
    run.kill()
    run.wait()
    def still(): before = (tmp_path/"beat").read_text(); time.sleep(0.5); return (tmp_path/"beat").read_text() != before
    while still(): assert time.monotonic() < until + 30


@pytest.mark.parametrize("server", [hanging(), answering(401)], ids=["hanging", "refusing"])
def test_a_run_ends_as_it_would_without_wandb(mlproj, trained, server, monkeypatch):
    with server as (url, _):
        for key, value in dict(WANDB_BASE_URL=url, WANDB_API_KEY="a"*40, HOME=str(mlproj.folder)).items(): monkeypatch.setenv(key, value)
        done = mlproj(*mlproj.small("tracking=online"))
    assert done.returncode == 0, done.stdout + done.stderr
    score = lambda run: json.loads((run/"stages"/"evaluate"/"scorecard.json").read_text())["metrics"]
    assert score(mlproj.runs()[-1]) == score(trained.run) and "Traceback" not in done.stderr
