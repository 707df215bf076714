"""The service in operation, as a real process: promotions, tables, overload, slow senders, the end of workers and of the server."""
import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import numpy as np
import polars as pl
import psutil
import pytest
from bundles import ROOT, Server, environment, small_bundle, small_contract, small_rows

from mlproj.serve.bundle import Bundle
from mlproj.serve.registry import Registry

ROW = dict(n0=5, n1=1.5, s0="JFK", s1="LGA")
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"


@pytest.fixture
def home(tmp_path):
    registry = Registry(tmp_path/"bentoml")
    registry.promote(registry.add(small_bundle(tmp_path/"a")))
    return registry.home


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operations")
    registry = Registry(folder/"bentoml")
    registry.promote(registry.add(small_bundle(folder/"a")))
    with Server(registry.home) as server: yield server


def metric(server, name: str) -> float:
    line = next((line for line in server.client.get("/metrics").text.splitlines() if line.startswith(name + " ")), f"{name} nan")
    return float(line.rpartition(" ")[2])


def until(said, seconds=6.0):
    "Wait until something holds; how long it took."
    begun = time.time()
    while not said():
        assert time.time() - begun < seconds, "it did not come"
        time.sleep(0.05)
    return time.time() - begun


def stream(frame) -> bytes:
    frame.write_ipc_stream(buffer := io.BytesIO())
    return buffer.getvalue()


def parquet(frame) -> bytes:
    frame.write_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


class Load:
    "Clients that ask again and again, in threads: `with Load(server) as load`; then `load.statuses`, `load.errors`, `load.models`."
    def __init__(self, server, clients=4): self.server, self.clients, self.statuses, self.errors, self.models, self.stop = server, clients, [], [], [], False
    def __enter__(self):
        self.pool = ThreadPoolExecutor(self.clients)
        self.work = [self.pool.submit(self.ask) for _ in range(self.clients)]
        until(lambda: len(self.statuses) > 50)
        return self
    def __exit__(self, *_):
        self.stop = True
        for work in self.work: work.result()
        self.pool.shutdown()
    def ask(self):
        with httpx.Client(base_url=self.server.url, timeout=20) as client:
            while not self.stop:
                try: answer = client.post("/predict", json=ROW)
                except httpx.TransportError as error: self.errors.append(error)
                else:
                    self.statuses.append(answer.status_code)
                    self.models.append(answer.json().get("model"))


# Promotion without a restart

def test_a_promotion_and_a_rollback_are_picked_up_under_load(home, tmp_path):
    registry = Registry(home)
    first, second = registry.resolve().tag, registry.add(small_bundle(tmp_path/"b", bias=1.0))
    with Server(home) as server:
        with Load(server) as load:
            registry.promote(second)
            assert until(lambda: load.models[-1] == second) < 5
            registry.rollback("flights")
            assert until(lambda: load.models[-1] == first) < 5
        assert not load.errors and set(load.statuses) == {200} and set(load.models) == {first, second}
        assert metric(server, 'mlproj_reloads_total{outcome="replaced"}') == 2
        assert metric(server, f'mlproj_model_info{{model="{first}"}}') == 1 and metric(server, f'mlproj_model_info{{model="{second}"}}') == 0
        served = httpx.get(server.url + "/docs.json").json()["info"]["version"]
        assert served == first


def test_a_damaged_version_never_replaces_a_good_one(home, tmp_path):
    registry = Registry(home)
    good, bad = registry.resolve().tag, registry.add(small_bundle(tmp_path/"b", bias=1.0))
    with Server(home) as server:
        registry.promote(bad)
        graph = home/"models/flights"/bad.partition(":")[2]/"bundle/model.onnx"
        os.chmod(graph, 0o644)
        graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
        until(lambda: metric(server, 'mlproj_reloads_total{outcome="refused"}') >= 1 or server.predict(ROW).json()["model"] == bad)
        if server.predict(ROW).json()["model"] == bad: pytest.skip("it was picked up before it was damaged")
        assert server.client.get("/readyz").status_code == 200 and server.predict(ROW).json()["model"] == good
        said = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
        assert next(line for line in said if line["event"] == "not replaced")["model"] == good
        registry.rollback("flights")
        registry.promote(registry.add(small_bundle(tmp_path/"c", bias=2.0)))
        until(lambda: server.predict(ROW).json()["model"] not in (good, bad))


def test_a_service_of_one_version_stays_with_it(home, tmp_path):
    registry = Registry(home)
    first = registry.resolve().tag
    with Server(home, MLPROJ_MODEL=first) as server:
        registry.promote(registry.add(small_bundle(tmp_path/"b", bias=1.0)))
        time.sleep(1.5)
        assert server.predict(ROW).json()["model"] == first


# Tables

@pytest.mark.parametrize("kind, written", [(ARROW, stream), (PARQUET, parquet)])
def test_a_table_is_answered_as_its_rows_are(server, kind, written):
    rows = small_rows(small_contract(), 300, seed=1).with_columns(more=pl.lit("left alone"))
    bad = rows.with_columns(s0=pl.when(pl.int_range(pl.len()) % 7 == 0).then(pl.lit("nowhere")).otherwise("s0"))
    before = metric(server, "mlproj_rows_total")
    answer = server.client.post("/predict/batch", content=written(bad), headers={"content-type": kind})
    assert answer.status_code == 200 and answer.headers["content-type"] == ARROW
    table = pl.read_ipc_stream(answer.content)
    refused = np.arange(300) % 7 == 0
    assert table["row"].to_list() == list(range(300)) and (table["reasons"].is_not_null().to_numpy() == refused).all()
    singles = [server.predict(row).json()["probability"] for row in rows.drop("more").to_dicts()]
    np.testing.assert_allclose(table["probability"].to_numpy()[~refused], np.float32(singles)[~refused], atol=1e-6)
    assert metric(server, "mlproj_rows_total") - before == 600


@pytest.mark.parametrize("body, kind, status, said", [
    (b"", ARROW, 422, "cannot be read"), (b"PAR1", PARQUET, 422, "cannot be read"), (b"{}", "application/json", 415, "arrow"), (b"\x80\x04K\x01.", "application/x-pickle", 415, "arrow"),
    (stream(pl.DataFrame(dict(n0=[1]))), ARROW, 422, "n1"), (parquet(pl.DataFrame(dict(n0=[1], n1=["x"], s0=["JFK"], s1=["JFK"]))), PARQUET, 422, "n1"),
    (parquet(pl.DataFrame(dict(n0=pl.repeat(1, 1_000_001, dtype=pl.Int8, eager=True)))), PARQUET, 422, "1,000,001 rows")])
def test_a_table_that_cannot_be_scored_is_refused_in_a_sentence(server, body, kind, status, said):
    answer = server.client.post("/predict/batch", content=body, headers={"content-type": kind})
    assert answer.status_code == status and said in json.dumps(answer.json()["error"])


def test_single_rows_are_answered_while_a_table_is_scored(server):
    table = small_rows(small_contract(), 200_000, seed=2)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(lambda: httpx.post(server.url + "/predict/batch", content=stream(table), headers={"content-type": ARROW}, timeout=60))
        answered = 0
        while not work.done(): answered += server.predict(ROW).status_code == 200
    assert work.result().status_code == 200 and answered > 5


# As much as it can do

def test_more_tables_than_there_is_room_for_are_refused_at_once(server):
    table = stream(small_rows(small_contract(), 300_000, seed=2))
    def ask(_):
        begun = time.time()
        answer = httpx.post(server.url + "/predict/batch", content=table, headers={"content-type": ARROW}, timeout=120)
        return answer.status_code, answer.headers.get("retry-after"), time.time() - begun
    with ThreadPoolExecutor(12) as pool: answers = list(pool.map(ask, range(12)))
    statuses = [status for status, *_ in answers]
    assert set(statuses) == {200, 503} and all(after == "1" for status, after, _ in answers if status == 503)
    assert server.predict(ROW).status_code == 200 and metric(server, "mlproj_in_flight") <= 1


def test_heads_and_bodies_that_do_not_come_are_given_up_and_bounded(server):
    head = b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    def opened(sent):
        s = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        s.sendall(sent)
        return s
    before, silent, begun, slow = metric(server, "mlproj_in_flight"), opened(b""), opened(head[:40]), [opened(head + b"{") for _ in range(520)]
    try:
        until(lambda: server.predict(ROW).status_code == 503)
        assert server.predict(ROW).headers["retry-after"] == "1"
        assert silent.recv(100) == b"" and begun.recv(100).startswith(b"HTTP/1.1 408") and slow[0].recv(100).startswith(b"HTTP/1.1 408")  # after ten seconds
        until(lambda: server.predict(ROW).status_code == 200)
    finally:
        for s in (silent, begun, *slow): s.close()
    until(lambda: metric(server, "mlproj_in_flight") <= before)


def test_a_head_that_has_no_end_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
        with suppress(ConnectionError):
            s.sendall(b"GET /healthz HTTP/1.1\r\nx: ")
            for _ in range(256): s.sendall(b"x"*2**16)
            pytest.fail("16 MiB of one header were read")
    assert server.predict(ROW).status_code == 200


def test_a_client_that_goes_away_leaves_nothing_behind(server):
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n{")
    until(lambda: metric(server, "mlproj_in_flight") == 0)


def test_a_thousand_connections_at_once_are_answered_or_refused_in_time(server):
    body = json.dumps(ROW).encode()
    request = b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    async def one(start):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await start.wait()
        writer.write(request)
        line = await reader.readline()
        writer.close()
        return int(line.split()[1])
    async def all_of_them():
        start = asyncio.Event()
        tasks = [asyncio.create_task(one(start)) for _ in range(1000)]
        await asyncio.sleep(2)
        start.set()
        return await asyncio.gather(*tasks)
    statuses = asyncio.run(all_of_them())
    assert len(statuses) == 1000 and set(statuses) <= {200, 503} and statuses.count(200) > 100
    assert server.predict(ROW).status_code == 200


# The end

def test_sigterm_drains_and_loses_nothing(home):
    with Server(home, MLPROJ_DRAIN_SECONDS="2") as server:
        with Load(server) as load:
            server.process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(server.url + "/readyz").status_code == 503, 2)
            answer = httpx.post(server.url + "/predict", json=ROW)
            assert answer.status_code == 200 and answer.headers["connection"] == "close"
            time.sleep(0.5)
            load.stop = True
        assert not load.errors and set(load.statuses) == {200}
        assert server.process.wait(15) is not None


def test_a_killed_worker_is_back(home):
    with Server(home) as server:
        [worker] = server.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: server.workers() and server.workers() != [worker], 10)
        def answers():
            try: return server.predict(ROW).status_code == 200
            except httpx.TransportError: return False
        until(answers, 10)


def test_a_killed_worker_is_back_in_a_container(home):
    with Server(home, BENTOML_CONTAINERIZED="true") as server:
        [worker] = server.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: server.workers() and server.workers() != [worker], 10)


def test_memory_and_files_stay_flat(server):
    worker, table = psutil.Process(server.workers()[0]), stream(small_rows(small_contract(), 5_000, seed=2))
    def some():
        for _ in range(300): server.predict(ROW), server.post(b"{"), server.predict(ROW | dict(n0=99))
        for _ in range(5): server.client.post("/predict/batch", content=table, headers={"content-type": ARROW})
    some()
    files, memory = worker.num_fds(), worker.memory_info().rss
    for _ in range(5): some()
    assert worker.num_fds() <= files + 2 and worker.memory_info().rss < memory + 30*2**20


# Traces

def test_requests_leave_spans_where_an_exporter_is_configured(home):
    code = """
import asyncio, httpx
from bentoml._internal.configuration.containers import BentoMLContainer
from mlproj.serve.service import Predictor, open_endpoint
app = Predictor.to_asgi()
async def ask():
    Predictor.endpoint = open_endpoint(Predictor.models[0].resolve())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client: return await client.post("/predict", json=%r)
print(asyncio.run(ask()).status_code)
provider = BentoMLContainer.tracer_provider.get()
provider.force_flush()
print([span.name for span in provider._active_span_processor._span_processors[-1].span_exporter.get_finished_spans()])
""" % ROW
    run = lambda **more: subprocess.run([sys.executable, "-c", code], env=environment(home, **more), cwd=ROOT, capture_output=True, text=True, timeout=60)
    done = run(BENTOML_CONFIG_OPTIONS="services.Predictor.tracing.exporter_type=in_memory services.Predictor.tracing.sample_rate=1.0")
    assert done.stdout.startswith("200") and "POST" in done.stdout, done.stdout + done.stderr[-2000:]


# What a service leaves behind, and who may read

def test_nothing_is_sent_or_kept_about_the_user(home, tmp_path):
    (tmp_path/"empty").mkdir()
    with Server(home, HOME=str(tmp_path/"empty")) as server:
        assert server.predict(ROW).status_code == 200
        assert server.client.post("/predict/batch", content=stream(small_rows(small_contract())), headers={"content-type": ARROW}).status_code == 200
    assert not [p for p in (tmp_path/"empty").rglob("*") if p.is_file()]  # onnxruntime keeps an id of the device, unless it is told not to


def test_a_version_can_be_read_by_another_user(home):
    version = Registry(home).resolve().path
    assert all(p.stat().st_mode & 0o005 == 0o005 for p in (version, version.parent)) and all(p.stat().st_mode & 0o004 for p in version.iterdir())


def test_a_table_that_its_reader_dies_of_is_refused_and_the_next_is_answered(server):
    table = stream(small_rows(small_contract(), 800_000, seed=2))
    server.client.post("/predict/batch", content=stream(small_rows(small_contract())), headers={"content-type": ARROW})
    [reader] = [p for p in psutil.Process(server.workers()[0]).children()]
    with ThreadPoolExecutor(1) as pool:
        idle = reader.cpu_times().user
        work = pool.submit(lambda: httpx.post(server.url + "/predict/batch", content=table, headers={"content-type": ARROW}, timeout=60))
        until(lambda: reader.cpu_times().user > idle + 0.05)  # it has begun
        reader.kill()
        answer = work.result()
    assert answer.status_code == 422 and "could not be read or scored" in answer.text
    assert server.predict(ROW).status_code == 200
    assert server.client.post("/predict/batch", content=stream(small_rows(small_contract())), headers={"content-type": ARROW}).status_code == 200
