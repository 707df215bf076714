"""kill -9 at random moments of runs: `python bench/kill.py 200`.

Starts small runs in a scratch store, each with another seed so that there is work to do, kills each after a random time (with its children), and looks: every line of the ledger
parses, every entry of the cache is what its manifest says, nothing half-written carries a real name, the registry resolves its champion. Every 20 kills, and at the end, a run must
succeed and say the same as an undisturbed one. Prints a line for each 20 kills, and exits with 1 at the first wrong thing."""
import argparse, collections, json, os, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/"tests")]
from conftest import Shell
from mlproj.ledger import Ledger, read_lines, read_manifest, verify_cache
from mlproj.project import MlprojError
from mlproj.serve.registry import Registry


STAGES = ("started", "data", "contract", "split", "audit", "features", "baseline", "train", "evaluate", "gate", "bundle", "registry")

def killed(shell: Shell, args, after: float, stage: str = "") -> tuple[str, bool]:
    "Start a run, kill it and its children after so many seconds (from when a stage was recorded, if one is named); the stage it had finished last, and whether it was still there to be killed."
    before, process, latest = len(shell.runs()), shell.start(*args, start_new_session=True), lambda: shell.events() if len(shell.runs()) > before else []
    while stage and process.poll() is None and not any(stage in (e["event"], e.get("stage")) for e in latest()): time.sleep(0.005)
    try: process.wait(after)
    except subprocess.TimeoutExpired: pass
    alive = process.poll() is None
    if alive: os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = [e.get("stage", e["event"]) for e in latest()]
    return done[-1] if done else "nothing", alive


def wrong(shell: Shell) -> list[str]:
    "What is not as it should be in the store and the registry."
    said, store = [], shell.folder/"store"
    for path in store.rglob("*.jsonl"):
        try: read_lines(path)
        except MlprojError as error: said.append(str(error))
    said += [f"cache entry {key} is not what its manifest says" for key in verify_cache(store/"cache")]
    for run in Ledger(store/"runs").runs():
        for path in run.path.glob("*.json"):
            try: json.loads(path.read_bytes())
            except ValueError: said.append(f"{path} is half a file")
        said += [f"{stage} is not what its manifest says" for stage in run.path.glob("stages/[a-z]*") if read_manifest(stage) is None]
    registry = Registry(shell.folder/"bentoml")
    for name in registry.names():
        try:
            if registry.champion(name): registry.resolve(f"{name}@champion")
        except MlprojError as error: said.append(str(error))
    return said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    n, rng = (args := parser.parse_args()).kills, random.Random(args.seed)
    shell = Shell(Path(tempfile.mkdtemp(prefix="kill-")))
    small = lambda seed: shell.small("model=linear", f"seed={seed}")
    score = lambda: json.loads((shell.runs()[-1]/"stages"/"evaluate"/"scorecard.json").read_text())["metrics"]
    begun = time.monotonic()
    done = shell(*small(0))
    if done.returncode: sys.exit(done.stderr)
    whole, reference = time.monotonic() - begun, score()
    shutil.rmtree(shell.folder/"store"/"cache", ignore_errors=True)
    print(f"an undisturbed run takes {whole:.1f} s", flush=True)
    points, early = collections.Counter(), 0
    for i in range(1, n + 1):
        # half at any time, half soon after a stage was recorded, where folders appear; the cache makes later runs of a seed short, so many have a new one
        at = (rng.uniform(0, whole),) if i % 2 else (rng.uniform(0, 0.3), rng.choice(STAGES))
        last, alive = killed(shell, small(rng.choice([0, i])), *at)
        points[last], early = points[last] + 1, early + (not alive)
        if said := wrong(shell): sys.exit(f"after {i} kills: " + "; ".join(said[:5]))
        if i % 20 == 0 or i == n:
            done = shell(*small(0))
            if done.returncode or score() != reference: sys.exit(f"after {i} kills a run does not succeed, or says something else: {done.stderr}")
            print(f"{i:4} kills: nothing wrong; killed after " + ", ".join(f"{stage} {k}" for stage, k in points.most_common()) + (f"; {early} were done before" if early else ""), flush=True)
    leftovers = [p for p in (shell.folder/"store").rglob(".*") if p.is_dir() and p.name != ".lock"]
    print(f"{len(Ledger(shell.folder/'store'/'runs').runs())} runs in the ledger, {len(leftovers)} temporary folders left by killed processes")
    shutil.rmtree(shell.folder)


if __name__ == "__main__": main()
