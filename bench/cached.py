"""What a run costs of which everything is known: `python bench/cached.py [DVC]`.

In turn, in one store: `mlproj run` with every stage in the cache; `mlproj run --cfg job`, which starts, composes the config and ends; and, where the path of the command `dvc` is given, `dvc repro`
on three unchanged stages of the same sizes. Wall time and CPU time, medians of the turns; then the same for a training that is mirrored to W&B, offline and with a server that never answers.
"""
import json, os, resource, socket, statistics, subprocess, sys, tempfile, threading, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["data.source.fraction=0.05", "gate=no_worse", "gate.criteria.validation_gain.at_least=-1", "gate.criteria.test_gain.at_least=-1", "train.accelerator=cpu"]


def timed(command, cwd=ROOT, **env) -> tuple[float, float]:
    "Wall and CPU seconds of a command."
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turn(turns: int, **calls) -> dict[str, tuple[float, float]]:
    "Medians of wall and CPU seconds of calls that were made in turn."
    found = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items(): found[name].append(call())
    return {name: tuple(statistics.median(x) for x in zip(*each)) for name, each in found.items()}


def dvc_project(dvc: str, folder: Path) -> None:
    "Three stages that copy a file of 300 kB, run once."
    folder.mkdir()
    (folder/"in.bin").write_bytes(os.urandom(300_000))
    stages = {f"s{i}": dict(cmd=f"cp {a} {b}", deps=[a], outs=[b]) for i, (a, b) in enumerate([("in.bin", "a.bin"), ("a.bin", "b.bin"), ("b.bin", "c.bin")])}
    (folder/"dvc.yaml").write_text(json.dumps(dict(stages=stages)))
    for command in (["git", "init", "-q"], [dvc, "init", "-q"], [dvc, "repro", "-q"]): subprocess.run(command, cwd=folder, check=True, capture_output=True)


def silent_server() -> int:
    "A port that accepts and never answers."
    server, kept = socket.create_server(("127.0.0.1", 0), backlog=64), []
    threading.Thread(target=lambda: [kept.append(server.accept()) for _ in iter(int, 1)], daemon=True).start()
    return server.getsockname()[1]


def main(dvc: str = "") -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else our own modules, and not those that pip has compiled, are compiled in every process
    with tempfile.TemporaryDirectory() as temporary:
        home = dict(MLPROJ_STORE=f"{temporary}/store", BENTOML_HOME=f"{temporary}/bentoml")
        run = lambda *more: timed([sys.executable, "-m", "mlproj.cli", "run", *SMALL, *more], **home)
        run("tracking=disabled")
        calls = dict(cached=lambda: run("tracking=disabled"), start=lambda: run("tracking=disabled", "--cfg", "job"))
        if dvc:
            dvc_project(dvc, Path(temporary)/"dvc")
            calls["dvc"] = lambda: timed([dvc, "repro"], cwd=Path(temporary)/"dvc")
        found = in_turn(11, **calls)
        print("| what | wall s | CPU s |\n| --- | --- | --- |")
        for name, (wall, cpu) in found.items(): print(f"| {name} | {wall:.3f} | {cpu:.3f} |")
        print(f"| own work: cached without start | {found['cached'][0] - found['start'][0]:.3f} | {found['cached'][1] - found['start'][1]:.3f} |")
        url = dict(WANDB_BASE_URL=f"http://127.0.0.1:{silent_server()}", WANDB_API_KEY="a"*40)
        train = lambda mode: timed([sys.executable, "-m", "mlproj.cli", "run", *SMALL, f"tracking={mode}", "--fresh", "--until", "evaluate"], **home, **url)
        found = in_turn(3, disabled=lambda: train("disabled"), offline=lambda: train("offline"), hanging=lambda: train("online"))
        print("\n| a training, W&B | wall s | CPU s | against disabled |\n| --- | --- | --- | --- |")
        for name, (wall, cpu) in found.items(): print(f"| {name} | {wall:.1f} | {cpu:.1f} | {wall/found['disabled'][0]:.3f} |")


if __name__ == "__main__": main(*sys.argv[1:])
