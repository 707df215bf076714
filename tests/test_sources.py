"Where data come from: what a dataset function read, tables under DVC and in lakeFS, and old versions that go while pinned ones stay."
import json, os, shutil, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import polars as pl
import pytest

from mlproj.data.inputs import inputs_changed, reading
from mlproj.data.snapshot import pinned_versions, take_snapshot, vacuum
from mlproj.data.source import read_csv, scan_table
from mlproj.data.url import fetch
from mlproj.examples import diamonds, flights
from mlproj.project import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder to work in, with a store of its own."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLPROJ_STORE", str(tmp_path/"store"))
    return tmp_path


# What was read

@pytest.mark.parametrize("dataset, files", [(lambda: flights.dataset(fraction=0.02), ["airlines.csv", "airports.csv", "flights.csv.zip", "planes.csv", "weather.csv"]), (diamonds.dataset, ["diamonds.csv"])])
def test_all_that_an_example_reads_is_known(dataset, files):
    with reading() as account: dataset()
    assert [Path(f).name for f in account["files"]] == files and account["complete"] and inputs_changed(account) == []


FORMATS = {"csv": "write_csv", "parquet": "write_parquet", "arrow": "write_ipc", "ndjson": "write_ndjson"}

@pytest.mark.parametrize("format", FORMATS)
def test_a_table_that_is_scanned_is_an_input(folder, format):
    def write(n): getattr(pl.DataFrame(dict(a=range(n))), FORMATS[format])(f"t.{format}")
    write(3)
    with reading() as account: scan_table(f"t.{format}").collect()
    assert list(account["files"]) == [f"t.{format}"] and inputs_changed(account) == []
    write(4)
    assert inputs_changed(account) == [f"t.{format} changed"]


def test_a_delta_table_that_got_a_version_has_changed(folder):
    take_snapshot(pl.DataFrame(dict(a=[1])), folder/"delta")
    with reading() as account: scan_table("delta").collect()
    assert account["complete"] and inputs_changed(account) == []
    take_snapshot(pl.DataFrame(dict(a=[2])), folder/"delta")
    assert "delta/_delta_log holds other files" in inputs_changed(account)


@pytest.mark.parametrize("listed", [lambda: sorted(Path("days").glob("*.csv")), lambda: os.listdir("days"), lambda: list(os.walk("days")), lambda: list(Path("days").iterdir())])
def test_a_folder_that_is_listed_is_an_input(folder, listed):
    Path("days").mkdir()
    with reading() as account: listed()
    assert inputs_changed(account) == []
    Path("days/1.csv").write_text("a\n")
    assert inputs_changed(account) == ["days holds other files"]


PROGRAMS = {
    "pathlib": "Path('t.csv').read_text()", "csv": "list(csv.reader(open('t.csv')))", "numpy": "np.loadtxt('t.csv', skiprows=1)", "np.fromfile": "np.fromfile('t.csv', dtype='u1')",
    "pandas": "pd.read_csv('t.csv')", "polars": "pl.read_csv('t.csv')", "keyword": "pl.read_csv(columns=['a'], source='t.csv')", "list": "pl.scan_csv(['t.csv']).collect()",
    "pattern": "pl.read_csv('t*.csv')", "own name": "read_csv('t.csv')", "narwhals": "nw.read_csv('t.csv', backend='polars')", "in a thread": "list(ThreadPoolExecutor().map(pl.read_csv, ['t.csv']))",
    "open file": "pl.read_csv(open('t.csv', 'rb'))", "memory map": "mmap.mmap(os.open('t.csv', os.O_RDONLY), 0, access=mmap.ACCESS_READ)[:]", "os.open": "os.read(os.open('t.csv', os.O_RDONLY), 9)", "absolute": "pl.read_csv(os.path.abspath('t.csv'))"}
HEADER = "import csv, mmap, os\nfrom concurrent.futures import ThreadPoolExecutor\nfrom pathlib import Path\nimport narwhals as nw, numpy as np, pandas as pd, polars as pl\nfrom polars import read_csv\n"

@pytest.mark.parametrize("program", PROGRAMS)
def test_a_file_is_an_input_whichever_library_reads_it(folder, monkeypatch, program):
    (folder/"t.csv").write_text("a\n1\n")
    (folder/"userdata.py").write_text(HEADER + f"def dataset(): return {PROGRAMS[program]}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "userdata", raising=False)
    import userdata
    with reading() as account: userdata.dataset()
    assert list(account["files"]) == ["t.csv"] and account["complete"], account["why"]
    (folder/"t.csv").write_text("a\n2\n")
    assert "t.csv changed" in inputs_changed(account)


UNHEARD = {
    "the clock": ("from datetime import datetime\ndef dataset(): return datetime.now().year", "asks the clock"), "the environment": ("import os\nNAME = os.environ.get('DATA')\ndef dataset(): return NAME", "uses `environ`"),
    "a helper that looks": ("from pathlib import Path\ndef there(): return Path('more.csv').exists()\ndef dataset(): return there()", "asks whether a file is there"),
    "a reader in a table": ("import polars as pl\nREAD = {'csv': pl.read_csv}\ndef dataset(): return READ['csv']('t.csv')", "takes `read_csv`"),
    "a reader applied in part": ("from functools import partial\nfrom polars import scan_csv\nread = partial(scan_csv, has_header=True)\ndef dataset(): return read('t.csv')", "takes `scan_csv`"),
    "a library in C": ("import pyarrow.csv as pc\ndef dataset(): return pc.read_csv('t.csv')", "what pyarrow reads"), "another database": ("def dataset():\n    import duckdb\n    return duckdb.sql('from t.csv')", "what duckdb reads"),
    "processes": ("from concurrent.futures import ProcessPoolExecutor\ndef dataset(): return ProcessPoolExecutor()", "ProcessPoolExecutor"), "sql": ("import polars as pl\ndef dataset(): return pl.SQLContext().execute('from t.csv')", "SQLContext")}

def reasons(folder, text):
    from mlproj.fingerprint import Codebase
    (folder/"userdata.py").write_text(text + "\n")
    (folder/"settings.ini").write_text("[DEFAULT]\nlib_name = mine\n")
    codebase = Codebase(folder)
    closure = codebase.closure(["userdata.dataset"])
    with reading({unit: codebase.unit(unit).source for unit in closure.units}, closure.modules) as account: pass
    assert account["complete"] == (not account["why"])
    return account["why"]

@pytest.mark.parametrize("what", UNHEARD)
def test_what_cannot_be_heard_shows_in_the_code_that_is_reached(folder, monkeypatch, what):
    monkeypatch.syspath_prepend(folder)
    text, said = UNHEARD[what]
    assert any(said in why for why in reasons(folder, text)), reasons(folder, text)

def test_code_that_only_looks_alike_or_is_not_reached_is_trusted(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    assert reasons(folder, "import polars as pl\nfrom pathlib import Path\ndef dataset(now, time): return pl.col('at').dt.time() > time, now, pl.read_csv('t.csv')\ndef other(): return Path('x').exists()") == []


def test_a_file_that_is_read_and_then_written_is_not_taken_for_made(folder):
    (folder/"count.txt").write_text("1")
    with reading() as account: Path("count.txt").write_text(str(int(Path("count.txt").read_text()) + 1))
    assert not account["complete"]
    with reading() as account:
        with open("count.txt", "a") as file: file.write("0")
        Path("count.txt").read_text()
    assert list(account["files"]) == ["count.txt"]


def test_a_link_that_points_elsewhere_has_changed(folder):
    for n in (1, 2): (folder/f"{n}.csv").write_text(f"a\n{n}\n")
    Path("now.csv").symlink_to("1.csv")
    with reading() as account: read_csv("now.csv", ["a"])
    Path("now.csv").unlink()
    Path("now.csv").symlink_to("2.csv")
    assert inputs_changed(account) == ["now.csv changed"]


def test_an_account_holds_in_another_checkout_with_the_same_files(folder, monkeypatch):
    for checkout, text in (("a", "x\n1\n"), ("b", "x\n1\n"), ("c", "x\n2\n")):
        (folder/checkout).mkdir()
        (folder/checkout/"t.csv").write_text(text)
    changes = []
    for checkout in "abc":
        monkeypatch.chdir(folder/checkout)
        if checkout == "a":
            with reading() as account: read_csv("t.csv", ["x"])
        changes.append(inputs_changed(account))
    assert changes == [[], [], ["t.csv changed"]]


def test_a_file_that_changes_while_it_is_read_is_not_known(folder):
    (folder/"t.csv").write_text("a\n1\n")
    with reading() as account:
        pl.read_csv("t.csv")
        with open("t.csv", "r+") as file: file.write("b")
    assert account["why"] == ["t.csv changed while it was read, or is no file"]


def test_looking_at_inputs_imports_no_table_library():
    done = subprocess.run([sys.executable, "-c", "import sys, mlproj.data.inputs as i; i.inputs_changed(dict(complete=True, files={}, folders={}, remotes={})); print(*{m.split('.')[0] for m in sys.modules})"],
                          capture_output=True, text=True, check=True)
    assert not {"polars", "numpy", "pandas", "fsspec", "dvc"} & set(done.stdout.split())


# DVC: a repository with a remote in a folder, and two versions of a table and of a folder

def sh(*command, **more): return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout.strip()

@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    "The folder of a repository under DVC and its remote, and the commits of two versions."
    pytest.importorskip("dvc")
    folder = tmp_path_factory.mktemp("versions")
    who = {f"GIT_{key}_{what}": "test@example.com" for key in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    def do(*command): return sh(*command, cwd=folder/"repo", env=os.environ | who | dict(DVC_NO_ANALYTICS="1"))
    def dvc(*command): return do(sys.executable, "-m", "dvc", *command, "-q")
    (folder/"repo"/"data"/"days").mkdir(parents=True)
    do("git", "init", "-q"); dvc("init"); dvc("remote", "add", "-d", "here", "../remote")
    def version(tag, rows):
        pl.DataFrame(dict(a=range(rows))).write_csv(folder/"repo"/"data"/"t.csv")
        pl.DataFrame(dict(a=range(rows))).write_parquet(folder/"repo"/"data"/"days"/f"{tag}.parquet")
        dvc("add", "data/t.csv", "data/days"); dvc("push"); do("git", "add", "-A"); do("git", "commit", "-qm", tag); do("git", "tag", tag)
        return do("git", "rev-parse", "HEAD")
    commits = [version("v1", 3), version("v2", 5)]
    for made in (".dvc/cache", "data"): shutil.rmtree(folder/"repo"/made)  # what is read comes from the remote
    return folder, commits, who

@pytest.fixture
def dvc(versions, folder, monkeypatch):
    "A copy of the repository, which is the current folder; and the commits."
    for name in ("repo", "remote"): shutil.copytree(versions[0]/name, folder/name)
    for name, value in versions[2].items(): monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder/"repo")
    return folder/"repo", versions[1]


def md5_of(rows) -> str:
    import hashlib
    return hashlib.md5(pl.DataFrame(dict(a=range(rows))).write_csv().encode()).hexdigest()


def test_both_revisions_of_a_table_under_dvc_are_read_and_named(dvc):
    repo, commits = dvc
    for tag, commit, rows in zip(("v1", "v2"), commits, (3, 5)):
        with reading() as account: assert read_csv(url := f"dvc://data/t.csv?rev={tag}", ["a"]).height == rows
        assert account["complete"] and not account["files"], account
        assert (account["remotes"][url]["revision"], account["remotes"][url]["content"]) == (commit, md5_of(rows))
        assert scan_table(f"dvc://data/days?rev={tag}").collect().height == {"v1": 3, "v2": 8}[tag]
        assert read_csv(f"dvc://data/t.csv?rev={commit}&repo={repo}", ["a"]).height == rows


def test_a_tag_of_dvc_that_moves_has_changed_and_a_commit_never_does(dvc):
    _, commits = dvc
    moving, fixed, head = "dvc://data/t.csv?rev=data", f"dvc://data/t.csv?rev={commits[0]}", "dvc://data/t.csv"
    sh("git", "tag", "data", "v1")
    with reading() as account: read_csv(moving, ["a"]), read_csv(fixed, ["a"])
    with reading() as at_head: read_csv(head, ["a"])
    assert inputs_changed(account) == inputs_changed(at_head) == []
    sh("git", "tag", "-f", "data", "v2")
    assert inputs_changed(account) == [f"{moving} changed: {commits[0][:12]} → {commits[1][:12]}"]
    Path("README").write_text("new"); sh("git", "add", "README"); sh("git", "commit", "-qm", "another commit, the same data")
    assert inputs_changed(at_head) == []


def test_what_dvc_cannot_give_is_one_line(dvc):
    for url, said in {"dvc://data/none.csv?rev=v1": "no such file at this revision", "dvc://data/t.csv?rev=v9": "cannot be opened", "dvc://data/t.csv?repo=/nowhere": "cannot be opened"}.items():
        with pytest.raises(DataError, match=said) as error: read_csv(url, ["a"])
        assert "\n" not in str(error.value)
    for file in Path("../remote").rglob("*"):
        if file.is_file(): file.chmod(0o644); file.write_text("a\n7\n")
    with pytest.raises(DataError): read_csv("dvc://data/t.csv?rev=v1", ["a"])
    shutil.rmtree("../remote")
    with pytest.raises(DataError): read_csv("dvc://data/t.csv?rev=v2", ["a"])


# lakeFS: a server that speaks the part of its API that is used. It is not lakeFS.

STORAGE = dict(blockstore_type="mem", blockstore_namespace_example="mem://x", blockstore_namespace_ValidityRegex="^mem://", pre_sign_support=False, pre_sign_support_ui=False,
               import_support=False, import_validity_regex="")

class LakeFS(BaseHTTPRequestHandler):
    "One repository `repo`: commits by id, branches by name, objects by commit and path."
    commits, branches, asked = {}, {}, []
    def log_message(self, *_): pass

    def answer(self, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data))}.items(): self.send_header(name, value)
        self.end_headers()
        if self.command == "GET": self.wfile.write(data)

    def do_HEAD(self): self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        parts, query = unquote(url.path).removeprefix("/api/v1/repositories/").removeprefix("repo/").split("/"), {k: v[0] for k, v in parse_qs(url.query).items()}
        self.asked.append("/".join(parts))
        id = self.branches.get(parts[1], parts[1]) if len(parts) > 1 else ""
        if url.path == "/api/v1/config": return self.answer(200, dict(storage_config=STORAGE))
        if parts == ["repo"]: return self.answer(200, dict(id="repo", storage_namespace="mem://repo", default_branch="main", creation_date=0))
        objects, path = self.commits.get(id), query.get("path", "")
        if objects is None: return self.answer(404, dict(message="not found"))
        if parts[0] == "commits": return self.answer(200, dict(id=id, parents=[], committer="t", message="m", creation_date=0, meta_range_id="", metadata={}))
        if parts[2:] == ["objects", "ls"]: return self.answer(200, dict(results=[], pagination=dict(has_more=False, next_offset="", results=0, max_per_page=100)))
        if path not in objects: return self.answer(404, dict(message="not found"))
        if parts[2:] == ["objects", "stat"]:
            return self.answer(200, dict(path=path, path_type="object", physical_address="x", checksum=str(hash(objects[path])), size_bytes=len(objects[path]), mtime=0))
        begin, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        self.answer(206 if "Range" in self.headers else 200, objects[path][int(begin):int(end or len(objects[path])) + 1], "application/octet-stream")


@pytest.fixture
def lakefs(folder, monkeypatch):
    pytest.importorskip("lakefs_spec")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (LakeFS,), dict(commits={"a"*64: {"t.csv": b"a\n1\n"}, "b"*64: {"t.csv": b"a\n1\n2\n"}}, branches={"main": "a"*64}, asked=[])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in dict(LAKECTL_SERVER_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}", LAKECTL_CREDENTIALS_ACCESS_KEY_ID="id", LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY="key", HOME=str(folder)).items():
        monkeypatch.setenv(name, value)
    yield server.RequestHandlerClass
    server.shutdown()


def test_a_branch_of_lakefs_is_read_at_its_commit(lakefs):
    with reading() as account: assert read_csv("lakefs://repo/main/t.csv", ["a"]).height == 1
    assert account["complete"] and account["remotes"]["lakefs://repo/main/t.csv"]["revision"] == "a"*64
    assert not [path for path in lakefs.asked if path.startswith("refs/main/objects")]  # what is not committed yet could be there
    assert inputs_changed(account) == []
    lakefs.branches["main"] = "b"*64
    assert inputs_changed(account) == [f"lakefs://repo/main/t.csv changed: {'a'*12} → {'b'*12}"]
    assert read_csv("lakefs://repo/main/t.csv", ["a"]).height == 2 and read_csv(f"lakefs://repo/{'a'*64}/t.csv", ["a"]).height == 1


def test_what_lakefs_cannot_give_is_one_line(lakefs, monkeypatch):
    with pytest.raises(DataError, match="no such file at this revision"): read_csv("lakefs://repo/main/none.csv", ["a"])
    with pytest.raises(DataError): read_csv("lakefs://repo/nobranch/t.csv", ["a"])
    monkeypatch.setenv("LAKECTL_SERVER_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="cannot be opened") as error: read_csv("lakefs://repo/main/t.csv", ["a"])
    assert "\n" not in str(error.value)


# Any other url

@pytest.fixture
def web(folder):
    "A web server with a file and its ETag, or without one."
    class Handler(BaseHTTPRequestHandler):
        content, etag, fetched = b"a\n1\n", '"1"', 0
        def log_message(self, *_): pass
        def do_HEAD(self, body=False):
            self.send_response(200)
            for name, value in {"Content-Length": str(len(self.content)), "ETag": self.etag}.items():
                if value: self.send_header(name, value)
            self.end_headers()
            if body: self.wfile.write(self.content)
        def do_GET(self):
            type(self).fetched += 1
            self.do_HEAD(body=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/t.csv", Handler
    server.shutdown()


def test_a_file_on_the_web_is_fetched_once_for_each_etag(web):
    url, server = web
    with reading() as account: read_csv(url, ["a"])
    assert account["complete"] and inputs_changed(account) == []
    fetched = server.fetched
    read_csv(url, ["a"])
    assert server.fetched == fetched
    server.content, server.etag = b"a\n1\n2\n", '"2"'
    assert len(inputs_changed(account)) == 1 and read_csv(url, ["a"]).height == 2


def test_a_file_on_the_web_without_a_version_is_not_known(web):
    url, server = web
    server.etag = None
    with reading() as account: read_csv(url, ["a"])
    assert not account["complete"] and account["why"] == [f"{url} has no version that can be told"]


def test_eight_threads_that_fetch_the_same_get_the_same(web, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool: copies = list(pool.map(lambda _: fetch(web[0], tmp_path/"s")[0].read_bytes(), range(32)))
    assert set(copies) == {b"a\n1\n"} and len(list((tmp_path/"s"/"inputs").iterdir())) == 1


# Old versions

def test_the_snapshot_of_a_bundle_can_be_read_after_old_versions_were_cleared(tmp_path):
    snapshots = [take_snapshot(pl.DataFrame(dict(day=[day]*50, row=range(50))), tmp_path/"t") for day in range(30)]
    bundle = dict(lineage=dict(snapshot=dict(uri=str(tmp_path/"t"), version=17)))
    other = dict(lineage=dict(snapshot=dict(uri=str(tmp_path/"other"), version=3)))
    pins = pinned_versions([("flights@champion", bundle["lineage"]["snapshot"]), ("diamonds", other["lineage"]["snapshot"])], tmp_path/"t")
    done = vacuum(tmp_path/"t", pins, hours=0)
    assert (done.kept, len(done.gone), done.lost) == ((17, 29), 28, ())
    assert len(list((tmp_path/"t").glob("*.parquet"))) == 2
    for kept in (17, 29): assert snapshots[kept].verify()["day"].unique().to_list() == [kept]
    with pytest.raises(DataError, match="cannot be read"): snapshots[18].verify()


def test_what_a_killed_writer_left_goes_too_and_young_files_stay(tmp_path):
    take_snapshot(pl.DataFrame(dict(a=[1])), tmp_path/"t")
    orphan = tmp_path/"t"/"part-00000-0.snappy.parquet"
    orphan.write_bytes(b"half of a file")
    assert vacuum(tmp_path/"t").files == 0 and orphan.exists()  # it may be a write under way
    os.utime(orphan, (0, 0))
    assert vacuum(tmp_path/"t").files == 1 and not orphan.exists()


def test_rows_of_a_table_in_several_files_keep_their_order(tmp_path):
    rng, rows = np.random.default_rng(0), 1_100_000
    table = pl.DataFrame({"row": np.arange(rows)} | {f"x{c}": rng.standard_normal(rows) for c in range(13)})
    snapshot = take_snapshot(pl.concat([table[:rows//3], table[rows//3:]], rechunk=False), tmp_path/"t")
    assert len(list((tmp_path/"t").glob("*.parquet"))) > 1
    assert snapshot.read().collect()["row"].is_sorted()
