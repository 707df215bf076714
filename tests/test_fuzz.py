"""Nonsense of every kind, seeded: no request makes the service fail, or end. `MLPROJ_FUZZ=10000` sends so many instead of 600."""
import io
import json
import os
import random
import socket

import httpx
import polars as pl
import pytest
from bundles import Server, small_bundle, small_contract, small_rows

from mlproj.serve.registry import Registry

REQUESTS = int(os.environ.get("MLPROJ_FUZZ") or 600)
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
ROW = dict(n0=5, n1=1.5, s0="JFK", s1="LGA")
ODD = [None, True, 0, -1, 2**53, 2**53 + 1, 10**400, -1e308, 1.5, "", "JFK", "jfk", "\ud800", "\0", "é", "x"*10_000, [], [1], {}, {"a": {"b": 1}}, "NaN", "2013-01-01", [[[[[]]]]], float("nan"), float("inf")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    registry = Registry(folder/"bentoml")
    registry.promote(registry.add(small_bundle(folder/"a")))
    with Server(registry.home) as server:
        workers = server.workers()
        yield server
        assert server.workers() == workers and server.client.get("/readyz").status_code == 200  # none of them died
        assert "Traceback" not in server.log.read_text() and '"event": "failed"' not in server.log.read_text()


def changed(rng: random.Random, data: bytes) -> bytes:
    "Bytes with some of them turned, cut off, doubled, or put elsewhere."
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data: break
        i, j = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
        what = rng.randrange(5)
        if what == 0: data[i] ^= 1 << rng.randrange(8)
        elif what == 1: data[i] = rng.randrange(256)
        elif what == 2: del data[i:min(j, i + 200)]
        elif what == 3: data[i:i] = data[i:min(j, i + 50)]
        else: data[i:i + 4] = rng.randbytes(4)
    return bytes(data)


def record(rng: random.Random) -> bytes:
    "A record with odd values, fields more, fields less, or broken as a text."
    row = dict(ROW)
    for name in rng.sample([*row, "more", "", "a\"b\\"], rng.randint(0, 3)):
        if rng.random() < 0.3: row.pop(name, None)
        else: row[name] = rng.choice(ODD)
    body = json.dumps(row if rng.random() < 0.9 else rng.choice([[row], [row, row], rng.choice(ODD)])).encode()
    return changed(rng, body) if rng.random() < 0.3 else body


def test_records(server):
    rng, seen = random.Random(0), set()
    for i in range(REQUESTS):
        answer = server.post(body := record(rng))
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400, 422), (i, body)
        assert answer.json()["request_id"]
    assert seen == {200, 400, 422}


@pytest.mark.parametrize("kind", [ARROW, PARQUET])
def test_tables_with_turned_bytes(server, kind):
    rng, rows, seen = random.Random(1), small_rows(small_contract(), 50, seed=4), set()
    buffer = io.BytesIO()
    rows.write_ipc_stream(buffer) if kind == ARROW else rows.write_parquet(buffer)
    for i in range(REQUESTS//2):
        answer = server.client.post("/predict/batch", content=changed(rng, buffer.getvalue()), headers={"content-type": kind})
        seen.add(answer.status_code)
        assert answer.status_code in (200, 422), i
        if answer.status_code == 200: pl.read_ipc_stream(answer.content)
    assert 422 in seen


def test_bytes_that_are_hardly_http(server):
    rng = random.Random(2)
    request = b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: 54\r\nconnection: close\r\n\r\n" + json.dumps(ROW).encode()
    for i in range(REQUESTS//4):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
            s.sendall(changed(rng, request))
            s.shutdown(socket.SHUT_WR)
            try: answer = s.recv(64)
            except ConnectionResetError: continue
        assert not answer or answer.split()[1][:1] in (b"2", b"4"), (i, answer)


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/", "/metrics", "/docs.json", "/schema.json", "/healthz", "/readyz", "/livez", "/nowhere"])
@pytest.mark.parametrize("kind", ["application/vnd.bentoml+pickle", "application/x-pickle", "application/octet-stream", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_no_route_takes_a_pickle(server, path, kind, tmp_path):
    canary = tmp_path/"canary"
    payload = b"cposix\nsystem\n(S'touch %s'\ntR." % str(canary).encode()  # what would run when it is unpickled
    for method in ("POST", "GET", "PUT"):
        answer = httpx.request(method, server.url + path, content=payload, headers={"content-type": kind, "payload-container": "default"})
        assert answer.status_code < 500 and not canary.exists()
