"""The service beside other model servers, and through what production does to it. All serve the logistic model of the peers; ours under its contract.

    PEERS=… PEERS_HOME=… python bench/service.py beside [SECONDS 5] [ROUNDS 3]   one row at 1, 16, 64 connections, cold start, memory: medians
    … batch [SECONDS 5]                 POST /predict/batch of 100,000 rows, beside the same in process, MLflow, and single rows meanwhile
    … overload [SECONDS 5] [rows|tables]   answered and refused at ever more connections, and how long until normal afterwards
    … soak MINUTES                      memory and open files under steady good, bad, torn and batch requests: a line every 10 s, then the slope
    … promote N                         promotions between two versions under load: failed requests, and when the last old answer came
    … cold [ROUNDS 5]                   from the start of `bentoml serve` to ready, beside a service of BentoML that does nothing (limit)
    … kill                              kill -9 of a worker, SIGTERM of the server, under load: requests lost, time back

`PEERS_HOME` is where the peers were set up (their README.md: environments `base`, `bento`, `mlflow`, data.py, and model.py with each); their scripts and
runner are read from `PEERS`. `wrk` drives `beside`; the rest is driven from here, because wrk does not count by status. `WORKERS` (1): those of our service.
The client takes a core, and its latency at many connections is its own queue too: so `overload` also asks from another process, with 4 connections.
A first answer's time includes the wait to be accepted: uvloop accepts one connection in each turn of its loop.
"""
import asyncio, gc, http.client, io, itertools, json, os, re, resource, signal, socket, statistics, subprocess, sys, tempfile, time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

from score import HOME, PEERS, ROOT, make_bundle, table

sys.path.insert(0, str(PEERS))
import run as peers  # not ours of the same name
from common import CAT, NUM
sys.path.pop(0)

PEER_NAMES = ("limit_asgi", "limit_starlette21", "fastapi_onnx", "litserve_onnx", "bento_onnx", "mlflow_serve")
KINDS = dict(arrow="application/vnd.apache.arrow.stream", parquet="application/vnd.apache.parquet")
WORKERS = int(os.environ.get("WORKERS", 1))
OURS = """import os
for name in [n for n in os.environ if n.startswith(("MLPROJ_", "BENTOML_", "PROMETHEUS_"))]: del os.environ[name]
os.environ.update({environment})
os.execv({python!r}, [{python!r}, "-m", "bentoml", "serve", "{target}", "--host", "127.0.0.1", "--port", os.environ["PORT"]])
"""

EMPTY = """import bentoml
@bentoml.service
class Empty:
    @bentoml.api
    def predict(self, x: float) -> float: return x
"""

def make_registry(folder: Path):
    "A registry with two versions of the peers' model, the first of them champion; and the tags."
    from mlproj.serve.bundle import Bundle, write_bundle
    from mlproj.serve.registry import Registry
    first, registry = make_bundle(folder), Registry(folder/"home")
    b = Bundle.open(first)
    second = write_bundle(folder/"second", (first/"model.onnx").read_bytes(), b.contract, b.profile, b.golden, b.facts | dict(run="second"))
    tags = [registry.add(first), registry.add(second)]
    registry.promote(tags[0])
    return registry, tags

def ours(folder: Path, name: str = "mlproj", target: str = "mlproj.serve.service:Predictor", label: str = "**mlproj, `bentoml serve`**") -> dict:
    "Our service, or another `target` of BentoML's that is in `folder`, as a contender of the peers' runner."
    environment = dict(BENTOML_HOME=str(folder/"home"), PYTHONPATH=f"{ROOT}:{folder}", NO_COLOR="1")
    if WORKERS > 1: environment["BENTOML_CONFIG_OPTIONS"] = f"services.Predictor.workers={WORKERS}"
    (folder/f"serve_{name}.py").write_text(OURS.format(environment=environment, python=sys.executable, target=target))
    return dict(name=name, path=folder/f"serve_{name}.py", env=sys.prefix, kind="ours", label=label)

def ask(port: int, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    "Status and body of an answer; status 0: nobody is there."
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST" if body else "GET", path, body, {"content-type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError: return 0, b""
    finally: connection.close()

@contextmanager
def launched(contender: dict, folder: Path, ready: str = "/readyz"):
    "A contender as a process, from when it is ready on."
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    env, log = peers.environ(contender["env"], PORT=port, BENTOML_HOME=folder/"bentoml"), folder/f"{contender['name']}.log"
    command = [str(HOME/"venvs"/contender["env"]/"bin"/"python"), str(contender["path"])]
    with log.open("wb") as out: process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True)
    until = time.time() + 60
    try:
        while ask(port, ready)[0] != 200:
            if process.poll() is not None or time.time() > until: raise SystemExit(f"{contender['name']} did not start:\n" + log.read_text()[-2000:])
            time.sleep(0.05)
        yield SimpleNamespace(process=process, pid=process.pid, port=port)
    finally: peers.stop(process)

@contextmanager
def service():
    "Our service, with its `registry` and the two `tags`."
    with tempfile.TemporaryDirectory() as tmp:
        registry, tags = make_registry(Path(tmp))
        with launched(ours(Path(tmp)), Path(tmp)) as server:
            server.registry, server.tags = registry, tags
            yield server

def processes(pid: int) -> dict[str, tuple[float, int]]:
    "Resident MB and open files of a server's processes, by what they are."
    found = {}
    for p in peers.tree(pid):
        try:
            words, memory = Path(f"/proc/{p}/cmdline").read_text(), re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{p}/status").read_text())
            what = "worker" if "worker.service" in words else "parent" if p == pid else "helper"
            if memory: found[f"{what} {p}"] = int(memory[1])/1024, len(os.listdir(f"/proc/{p}/fd"))
        except OSError: pass
    return found

def request(body: bytes = b"", path: str = "/predict", kind: str = "application/json", method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

def frame(n: int):
    import polars as pl
    return pl.read_parquet(HOME/"data"/"score.parquet", columns=NUM + CAT, n_rows=n)

def encoded(data, kind: str) -> bytes:
    file = io.BytesIO()
    data.write_ipc_stream(file) if kind == "arrow" else data.write_parquet(file, compression="lz4", statistics=False)
    return file.getvalue()

def rows() -> list[dict]: return json.loads((HOME/"data"/"rows.json").read_text())
def singles() -> list[bytes]: return [request(json.dumps(row).encode()) for row in rows()]
def tables(n: int, kind: str = "arrow") -> list[bytes]: return [request(encoded(frame(n), kind), "/predict/batch", KINDS[kind])]

def bad() -> list[bytes]:
    "What a service gets and should refuse."
    row = rows()[0]
    records = [dict(list(row.items())[1:]), row | dict(origin=7), row | dict(unknown=1), row | dict(distance="far"), [row], dict(row=row)]
    return [*(request(json.dumps(r).encode()) for r in records), request(b"{"), request(b"\xff"), request(b"["*50_000), request(b" "*1_100_000),
            request(b"x", kind="text/plain"), request(b"x", kind="application/vnd.bentoml+pickle"), request(path="/nothing"), request(method="GET"),
            request(b"ARROW1", "/predict/batch", KINDS["arrow"]), request(b"PAR1PAR1", "/predict/batch", KINDS["parquet"])]

class Connection(asyncio.Protocol):
    "A kept connection that sends one request after the other."
    def __init__(self, load): self.load, self.buffer, self.begun = load, bytearray(), None

    def connection_made(self, transport):
        self.transport = transport
        self.load.open.add(self)
        self.ask()

    def ask(self):
        if self.transport.is_closing(): return
        if not self.load.running: return self.transport.close()
        message = next(self.load.requests)
        if self.load.torn: self.load.loop.call_later(self.load.pause, self.transport.close)
        else: self.begun = perf_counter()
        self.transport.write(message[:-1] if self.load.torn else message)

    def data_received(self, data):
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0: return
        head = bytes(self.buffer[:end + 2]).lower()
        at = head.find(b"content-length: ") + 16
        if len(self.buffer) < end + 4 + int(head[at:head.find(b"\r", at)]): return
        code = int(head[9:12])
        if self.begun is not None: self.load.note("503 bare" if code == 503 and b"retry-after" not in head else code, self.begun, self.buffer)
        self.begun = None
        self.buffer.clear()
        if b"connection: close" in head: self.transport.close()
        elif self.load.pause: self.load.loop.call_later(self.load.pause, self.ask)
        else: self.ask()

    def connection_lost(self, error):
        self.load.open.discard(self)
        if self.begun is not None: self.load.note("lost", self.begun)
        self.begun = None
        if self.load.running: self.load.connect()

class Load:
    """Connections that each send one of `requests` after the other, `pause` seconds apart. `answers`: (status, sent, seconds); a status is a number, `lost`
    (the connection broke), `refused` (no connection), `hung` (nothing 10 s after the end) or `503 bare` (without Retry-After). `last`: when a version was last
    named. `torn`: the connection closes before the last byte is sent."""
    def __init__(self, port: int, requests: list[bytes], connections: int, pause: float = 0, torn: bool = False):
        self.port, self.requests, self.connections, self.pause, self.torn = port, itertools.cycle(requests), connections, pause, torn
        self.answers, self.last, self.open, self.tasks, self.running = [], {}, set(), set(), True

    def note(self, code, sent: float, answer: bytes = b""):
        now = perf_counter()
        self.answers.append((code, sent, now - sent))
        if len(answer) < 4096 and (at := answer.find(b'"model":"')) >= 0: self.last[bytes(answer[at + 9:answer.find(b'"', at + 9)]).decode()] = now

    def connect(self):
        async def until_connected():
            while self.running:
                try: return await self.loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
                except OSError: self.note("refused", perf_counter())
                await asyncio.sleep(0.05)
        task = self.loop.create_task(until_connected())
        self.tasks.add(task)  # held, or it would be collected
        task.add_done_callback(self.tasks.discard)

    async def __aenter__(self):
        self.loop, self.begun = asyncio.get_running_loop(), perf_counter()
        for _ in range(self.connections): self.connect()
        return self

    async def __aexit__(self, *_):
        self.running, self.seconds, until = False, perf_counter() - self.begun, time.time() + 10
        while any(c.begun is not None for c in self.open) and time.time() < until: await asyncio.sleep(0.01)
        for connection in list(self.open):
            if connection.begun is not None: self.note("hung", connection.begun)
            connection.begun = None
            connection.transport.abort()

def run(coroutine):
    "Run on a fast loop, without garbage collection: what is measured is the service."
    import uvloop
    gc.disable()
    return uvloop.run(coroutine)

def by_status(answers) -> dict:
    "Seconds of the answers, by status."
    found = {}
    for code, _, seconds in answers: found.setdefault(code, []).append(seconds)
    return found

def within(seconds: list[float], share: float) -> float: return sorted(seconds)[min(int(len(seconds)*share), len(seconds) - 1)]*1000  # ms
def shares(seconds: list[float]) -> str: return f"{within(seconds, 0.5):.2f}, {within(seconds, 0.99):.2f}" if seconds else ""
def counted(answers) -> str: return ", ".join(f"{n:,} × {code}" for code, n in sorted(Counter(a[0] for a in answers).items(), key=str)) or "none"

def beside(seconds: int = 5, rounds: int = 3) -> None:
    connections, found, rss = (1, 16, 64), {}, {}
    peers.RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        make_registry(Path(tmp))
        contenders = {c["name"]: c for c in (ours(Path(tmp)), *peers.contenders("serving"))}
        for _, name in itertools.product(range(rounds), ("mlproj", *PEER_NAMES)):
            peers.rss_mb = lambda pid: rss.update({name: [memory for memory, _ in processes(pid).values()]})
            with tempfile.TemporaryDirectory() as own:
                try: found.setdefault(name, []).append(peers.serving(contenders[name], SimpleNamespace(seconds=seconds, conns=connections), Path(own)))
                except Exception as error: print(f"{name} failed: {error}", file=sys.stderr)
    middle = {name: {key: statistics.median(one[key] for one in runs) for key in runs[0] if key != "rss_mb"} for name, runs in found.items() if runs}
    ratio = lambda m, other: f"{m['rps16']/middle[other]['rps16']:.2f}" if other in middle else ""
    table(["one row", *(f"req/s @{n}" for n in connections), "@16 of raw ASGI", "against FastAPI", "against BentoML", *(f"p50, p99 ms @{n}" for n in connections),
           "errors", "start s", "MB: largest process, all"],
          [[contenders[name]["label"], *(f"{m[f'rps{n}']:,.0f}" for n in connections), *(ratio(m, other) for other in ("limit_asgi", "fastapi_onnx", "bento_onnx")),
            *(f"{m[f'p50_{n}']:.2f}, {m[f'p99_{n}']:.2f}" for n in connections), sum(r["errors"] for r in found[name]), m["ready_s"], f"{max(rss[name]):.0f}, {sum(rss[name]):.0f}"]
           for name, m in sorted(middle.items(), key=lambda item: -item[1]["rps16"])])

def timed(way) -> float:
    begun = perf_counter()
    way()
    return perf_counter() - begun

def post(port: int, path: str, body: bytes, kind: str) -> bytes:
    status, answer = ask(port, path, body, kind)
    if status != 200: raise SystemExit(f"{path}: {status} {answer[:300]!r}")
    return answer

def batch(seconds: int = 5) -> None:
    import polars as pl
    from mlproj.serve.batch import Batches
    from mlproj.serve.bundle import Bundle
    data, times = frame(100_000), {}
    bodies = {kind: encoded(data, kind) for kind in KINDS}
    async def meanwhile(port, tables_at_once):
        async with Load(port, tables(100_000), tables_at_once), Load(port, singles(), 8) as single: await asyncio.sleep(seconds)
        return single
    with service() as server:
        version, sent = server.registry.resolve(), lambda k: post(server.port, "/predict/batch", bodies[k], KINDS[k])
        one, all_cores = Bundle.open(version.path), Bundle.open(version.path, threads=os.cpu_count() or 1)
        inside = Batches(one, version.tag)
        ways = {"`Bundle.predict_frame` in process, one thread (limit)": lambda: one.predict_frame(data), "the same, a thread for each core": lambda: all_cores.predict_frame(data)}
        ways |= {f"body to answer, in process, {k}": lambda k=k: inside.score(bodies[k], KINDS[k].encode()) for k in KINDS}
        ways |= {f"**POST /predict/batch, {k}**, {len(bodies[k])/1e6:.1f} MB": lambda k=k: sent(k) for k in KINDS}
        answer, until = pl.read_ipc_stream(io.BytesIO(sent("arrow"))), perf_counter() + seconds*len(ways)
        while perf_counter() < until:
            for name, way in ways.items(): times.setdefault(name, []).append(timed(way))
        single = {said: run(meanwhile(server.port, n)) for said, n in {"alone": 0, "while tables are scored": 1}.items()}
        largest = max(memory for memory, _ in processes(server.pid).values())
    mlflow, csv = next(c for c in peers.contenders("serving") if c["name"] == "mlflow_serve"), data.write_csv().encode()
    with tempfile.TemporaryDirectory() as tmp, launched(mlflow, Path(tmp), "/ping") as server:
        times["MLflow, POST /invocations, CSV"] = [timed(lambda: post(server.port, "/invocations", csv, "text/csv")) for _ in range(4)][1:]
    rates = {name: data.height/statistics.median(t) for name, t in times.items()}
    limit = next(iter(rates.values()))
    table([f"{data.height:,} rows a request", "rows/s", "of the limit"], [[name, f"{rate:,.0f}", f"{rate/limit:.2f}"] for name, rate in rates.items()])
    good, expected = answer.filter(pl.col("reasons").is_null()), pl.read_parquet(HOME/"data"/"score_expected.parquet")["p"]
    worst = (expected.gather(good["row"]) - good["probability"]).abs().max()
    print(f"{answer.height - good.height:,} rows refused; largest difference to scikit-learn {worst:.1e}; the worker has {largest:.0f} MB")
    for said, load in single.items():
        t = by_status(load.answers).get(200, [])
        print(f"single rows at 8 connections {said}: {len(t)/load.seconds:,.0f}/s, p50, p99 ms {shares(t)}; {counted(load.answers)}")

def offered(port: int, kind: str, connections: int, seconds: float) -> tuple[dict, float]:
    "Seconds by status of what so many connections got that ask without pause, and how long it took. For a process of its own."
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],)*2)
    async def offer():
        async with Load(port, tables(10_000) if kind == "tables" else singles(), connections) as load: await asyncio.sleep(seconds)
        return by_status(load.answers), load.seconds
    return run(offer())

def overload(seconds: float = 5, kind: str = "rows") -> None:
    lines, windows = [], {}
    async def point(port, connections):
        async with Load(port, singles(), 4, pause=0.01) as probe: found = await asyncio.wrap_future(pool.submit(offered, port, kind, connections, seconds))
        return *found, by_status(probe.answers)
    async def calm(port):
        async with Load(port, singles(), 16) as load: await asyncio.sleep(10)
        return load
    with service() as server, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(offered, server.port, kind, 1, 0.1).result()  # its imports are not part of a point
        usual = within(by_status(run(calm(server.port)).answers)[200], 0.5)
        for connections in (16, 64, 256, 500, 1000, 2000) if kind == "rows" else (1, 4, 16, 64, 256):
            found, lasted, probe = run(point(server.port, connections))
            good, refused, asked, answered = found.get(200, []), found.get(503, []), sum(map(len, probe.values())), probe.get(200, [])
            lines.append([f"{connections:,}", f"{len(good)/lasted:,.0f}", f"{len(refused)/lasted:,.0f}", *map(shares, (good, refused, answered, probe.get(503, []))),
                          f"{asked - len(answered):,} of {asked:,}", ", ".join(f"{len(t):,} × {code}" for code, t in found.items() if code not in (200, 503))])
        after, memory = run(calm(server.port)), processes(server.pid)
    table([f"connections, {kind}", "answered/s", "503/s", "answered: p50, p99 ms", "503: p50, p99 ms", "probe answered: p50, p99 ms", "probe 503: p50, p99 ms",
           "probe not answered", "other"], lines)
    for answer in after.answers: windows.setdefault(int((answer[1] + answer[2] - after.begun)/0.25), []).append(answer)
    normal = [all(a[0] == 200 for a in w) and within([a[2] for a in w], 0.5) <= 2*usual for i in range(40) for w in [windows.get(i, [("none", 0, 0)])]]
    first = next((f"{i*0.25:.2f} s" for i in range(37) if all(normal[i:i + 4])), "not within 9 s")
    print(f"usual median at 16 connections {usual:.2f} ms; a second of 200 alone, at most twice that median, began {first} after the load ended ({normal.count(False)} of 40 quarters were not so). "
          + ", ".join(f"{name}: {size:.0f} MB, {files} files" for name, (size, files) in memory.items()))

def soak(minutes: float) -> None:
    found, counts = {}, Counter()
    async def steady(server):
        port, begun = server.port, perf_counter()
        async with (Load(port, singles(), 8, pause=0.02) as good, Load(port, bad(), 2, pause=0.05) as wrong, Load(port, singles(), 2, pause=0.1, torn=True),
                    Load(port, tables(1000) + tables(1000, "parquet"), 1, pause=0.2) as many):
            for i in range(1, int(minutes*6) + 1):
                await asyncio.sleep(max(0, begun + i*10 - perf_counter()))
                for name, load in dict(good=good, bad=wrong, table=many).items():
                    counts.update(f"{name} {answer[0]}" for answer in load.answers)
                    load.answers.clear()
                gc.collect()
                now = processes(server.pid)
                for name, measured in now.items(): found.setdefault(name, []).append((i/6, *measured))
                print(f"{i*10:5d} s  " + "  ".join(f"{name}: {memory:.1f} MB, {files} files" for name, (memory, files) in now.items()) + f"  {dict(sorted(counts.items()))}", flush=True)
    with service() as server: run(steady(server))
    for name, points in found.items():
        warm = [p for p in points if p[0] > minutes/5]
        if len(warm) < 3: print(f"{name}: too short to tell")
        else:
            slope, memory, files = statistics.linear_regression([p[0] for p in warm], [p[1] for p in warm]).slope, [p[1] for p in warm], [p[2] for p in warm]
            grown = slope*(warm[-1][0] - warm[0][0])
            verdict = "flat" if grown < max(2, 0.02*memory[0]) and files[-1] <= files[0] + 2 else "GROWS"
            print(f"{name}: {verdict}; {slope:+.3f} MB a minute after the first fifth ({grown:+.1f} MB in all, {min(memory):.1f} to {max(memory):.1f}), files {min(files)} to {max(files)}")

def promote(n: int) -> None:
    async def under_load(server):
        times, (old, new), before = [], server.tags, processes(server.pid)
        async with Load(server.port, singles(), 16) as load:
            await asyncio.sleep(1)
            for _ in range(n):
                begun = perf_counter()
                await asyncio.to_thread(server.registry.promote, new)
                while perf_counter() - max(begun, load.last[old]) < 0.5 or load.last.get(new, 0) < begun:
                    await asyncio.sleep(0.02)
                    if perf_counter() - begun > 15: raise SystemExit(f"{old} still answers after 15 s; {counted(load.answers)}")
                times.append(load.last[old] - begun)
                old, new = new, old
        seconds, after = by_status(load.answers)[200], processes(server.pid)
        print(f"{n} promotions, {len(load.answers):,} requests at 16 connections ({len(seconds)/load.seconds:,.0f}/s, p50, p99 ms {shares(seconds)}, longest {max(seconds)*1000:.0f} ms); "
              f"failed: {counted(a for a in load.answers if a[0] != 200)}")
        print(f"last answer of the old version after {statistics.median(times):.2f} s (median), {max(times):.2f} s (longest)")
        print("memory: " + ", ".join(f"{name} {before[name][0]:.1f} to {size:.1f} MB" for name, (size, _) in after.items() if name in before))
    with service() as server: run(under_load(server))

def cold(rounds: int = 5) -> None:
    times = {}
    with tempfile.TemporaryDirectory() as tmp:
        make_registry(folder := Path(tmp))
        (folder/"empty.py").write_text(EMPTY)
        contenders = [ours(folder, "nothing", "empty:Empty", "`bentoml serve` of a service that does nothing (limit)"), ours(folder)]
        for _, contender in itertools.product(range(rounds), contenders):
            begun = perf_counter()
            with launched(contender, folder): times.setdefault(contender["label"], []).append(perf_counter() - begun)
    limit = statistics.median(times[contenders[0]["label"]])
    table(["to ready", "s: median", "all", "of the limit"], [[label, f"{statistics.median(t):.2f}", ", ".join(f"{s:.2f}" for s in sorted(t)), f"{statistics.median(t)/limit:.2f}"] for label, t in times.items()])

def kill() -> None:
    async def killed(server, pid, sign, leave):
        ready, unready, exited = request(method="GET", path="/readyz"), [], None
        async with Load(server.port, singles(), 16) as busy, Load(server.port, singles(), 16, pause=0.05) as idle, Load(server.port, [ready], 1, pause=0.01) as probe:
            await asyncio.sleep(2)
            at = perf_counter()
            since = lambda answer: answer[1] + answer[2] - at
            os.kill(pid, sign)
            while perf_counter() - at < (15 if sign == signal.SIGKILL else 40) and exited is None:
                await asyncio.sleep(0.01)
                if server.process.poll() is not None: exited = perf_counter() - at
                unready = unready or [since(a) for a in probe.answers if since(a) > 0 and a[0] != 200]
                if leave and unready and perf_counter() - at > unready[0] + 1: busy.running = idle.running = False
        for name, load in dict(busy=busy, idle=idle).items():
            before, after, lost = [a for a in load.answers if since(a) <= 0], [a for a in load.answers if since(a) > 0], sorted({f"{since(a):.1f}" for a in load.answers if a[0] == "lost"})
            print(f"  {name} connections: before {counted(before)}; after {counted(after)}" + f"; lost at {', '.join(lost)} s"*bool(lost))
        back, trouble = min((since(a) for a in busy.answers if a[0] == 200 and a[1] > at), default=0), max((since(a) for a in busy.answers if a[0] != 200), default=0)
        if sign == signal.SIGKILL: print(f"  first answer to a new request after {back:.2f} s, last trouble after {trouble:.2f} s")
        else: print(f"  /readyz not 200 after {min(unready, default=0):.2f} s, exit after {exited or 0:.2f} s with {server.process.returncode}")
    scenes = {f"kill -9 of one worker of {WORKERS}": (signal.SIGKILL, False), "SIGTERM, clients leave a second after /readyz says so": (signal.SIGTERM, True),
              "SIGTERM, clients stay": (signal.SIGTERM, False)}
    for scene, (sign, leave) in scenes.items():
        with service() as server:
            print(scene)
            worker = next(int(name.split()[1]) for name in processes(server.pid) if name.startswith("worker"))
            run(killed(server, worker if sign == signal.SIGKILL else server.pid, sign, leave))

if __name__ == "__main__":
    name, *arguments = sys.argv[1:] or ["beside"]
    number = lambda text: text if text.isalpha() else int(text) if text.isdigit() else float(text)
    dict(beside=beside, batch=batch, overload=overload, soak=soak, promote=promote, cold=cold, kill=kill)[name](*map(number, arguments))
