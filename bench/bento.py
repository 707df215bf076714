"""A Bento where nothing else is: built from a small bundle, exported, and served in a new virtual environment made from its own lock.

    python bench/bento.py        needs the package index; about two minutes

Prints the size of the Bento and of its environment, the time to the first answer, and the memory of the processes at rest.
"""
import os, subprocess, sys, tarfile, tempfile, time
from pathlib import Path

import httpx, psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/"tests")]
ROW = dict(n0=5, n1=1.5, s0="JFK", s1="LGA")
INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack")


def run(*command, **kwargs): subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, **kwargs)


def size(folder: Path) -> float:
    "MB of the files in a folder."
    return sum(p.lstat().st_size for p in folder.rglob("*"))/1e6


def build(folder: Path) -> Path:
    "A Bento of the working tree with a small bundle inside, exported and unpacked."
    from bundles import environment, small_bundle
    from mlproj.serve.registry import Registry
    registry = Registry(folder/"home")
    registry.promote(registry.add(small_bundle(folder/"bundle")))
    env = environment(folder/"home")
    run(sys.executable, "-m", "bentoml", "build", cwd=ROOT, env=env)
    run(sys.executable, "-m", "bentoml", "export", "predictor:latest", folder/"predictor.bento", cwd=folder, env=env)
    with tarfile.open(folder/"predictor.bento") as archive: archive.extractall(folder/"bento", filter="data")
    return folder/"bento"


def install(folder: Path, bento: Path) -> Path:
    "The Python of a new environment with exactly the Bento's requirements, wheels only, as the Dockerfile does it."
    run(sys.executable, "-m", "venv", folder/"venv")
    python = folder/"venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "--no-cache-dir", "--no-deps", "--only-binary=:all:", "-r", bento/"env/python/requirements.txt")
    run(python, "-m", "pip", "check")
    return python


def serve(python: Path, bento: Path, folder: Path) -> tuple[list[float], list[psutil.Process], subprocess.Popen]:
    "Three times from the start of the command to the first answer, in seconds; the processes of the last."
    from bundles import free_port
    clean = dict(PATH=os.environ["PATH"], BENTOML_HOME=str(folder/"empty"), HOME=str(folder), BENTOML_DO_NOT_TRACK="True", ORT_DISABLE_TELEMETRY="1")
    seconds = []
    for last in (False, False, True):
        port, began = free_port(), time.perf_counter()
        with (folder/"server.log").open("wb") as log: server = subprocess.Popen([python, "-m", "bentoml", "serve", bento, "--port", str(port)], cwd=folder, env=clean, stdout=log, stderr=log)
        while True:
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/predict", json=ROW)
                break
            except httpx.TransportError: time.sleep(0.02)
            if server.poll() is not None: sys.exit((folder/"server.log").read_text())
        seconds.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
        if last: return seconds, [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)], server
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bento = build(folder)
        python = install(folder, bento)
        site = next((folder/"venv/lib").glob("python*/site-packages"))
        packages = {p.name: size(p) for p in site.iterdir() if p.is_dir() and p.name not in INSTALLERS}
        seconds, processes, server = serve(python, bento, folder)
        print(f"Bento, exported: {(folder/'predictor.bento').stat().st_size/1e6:.2f} MB")
        print(f"environment: {sum(packages.values()):.0f} MB in {len((bento/'env/python/requirements.txt').read_text().split()) - 1} packages, of which "
              + ", ".join(f"{n} {mb:.0f}" for n, mb in sorted(packages.items(), key=lambda kv: -kv[1])[:6]))
        print("start to first answer: " + ", ".join(f"{s:.1f}" for s in seconds) + " s")
        for process in processes:
            memory = process.memory_full_info()
            kind = "worker" if any("worker" in part for part in process.cmdline()) else "parent"
            print(f"{kind}: {memory.rss/1e6:.0f} MB resident, {memory.pss/1e6:.0f} MB with shared pages divided, {memory.uss/1e6:.0f} MB of its own")
        server.terminate()
        server.wait(60)
