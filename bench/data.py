"""Profile, drift distances and contract checks beside their peers and limits, in one run on one machine; prints the tables of bench/README.md.

    python bench/data.py setup             the peers' environments, and the data: flights repeated to 1 and 10 million rows (about 10 minutes, 8 GB)
    python bench/data.py                   all tables; or some of: profile, continuous, drift, check, linear

They live under .mlproj/bench, or $MLPROJ_BENCH. Every measurement is a process of its own, contenders in turn, the median of three; what takes more
than ten seconds runs once. Ratios within a table travel between machines, absolute figures do not. Run on an idle machine.
"""
import json, os, statistics, subprocess, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import contenders
from contenders import HOME, NUMERIC

HERE = Path(__file__).parent
ENVIRONMENTS = dict(  # the peers need other versions of common libraries than mlproj, and of each other
    base=["duckdb==1.5.4", "polars==2.1.0", "numpy", "skrub", "pandas", "pyarrow"],
    evidently=["evidently==0.7.23", "whylogs==1.6.4", "pandas==2.2.3", "numpy==1.26.4", "pyarrow==17.0.0", "ipython"],
    pandera=["pandera[polars]==0.35.0", "polars", "pyarrow"],
    gx=["great_expectations==1.24.1", "pyarrow"])
OF = dict(evidently="evidently", whylogs="evidently", pandera="pandera", great="gx", mlproj="mlproj")
TABLES = dict(
    profile=("profile_", ["1m", "10m"], "limit_counts"),
    continuous=("profile_", ["10m_continuous"], "limit_polars limit_duckdb_approx"),
    drift=("drift_", ["1m"], "limit_saved"),
    check=("check_", ["1m", "10m"], "limit_polars limit_duckdb"))

LEFT_OUT = {  # another table's limit, and what takes minutes: Evidently and whylogs take as long per row on 10 million
    ("profile", "10m"): ("limit_polars", "limit_duckdb_approx", "evidently", "whylogs"), "profile": ("limit_polars", "limit_duckdb_approx"),
    "continuous": ("limit_counts", "evidently", "whylogs")}


def python(name: str) -> str:
    "The Python of a contender's environment."
    env = OF.get(name.split("_")[1], "base")
    return sys.executable if env == "mlproj" else str(HOME/"venvs"/env/"bin/python")


def measure(name: str, case: str) -> dict:
    "One process: seconds, peak memory in MB, note."
    process = subprocess.Popen([python(name), str(HERE/"contenders.py"), name, case], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
                               env=os.environ | dict(MLPROJ_BENCH=str(HOME), PYTHONWARNINGS="ignore", DO_NOT_TRACK="1"))
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    said = [line for line in out.splitlines() if line.startswith("RESULT ")]
    if status or not said: raise SystemExit(f"{name} {case} failed:\n" + err[-2000:])
    return json.loads(said[0][7:]) | dict(mb=usage.ru_maxrss//1024)


def compare(names: list[str], case: str) -> dict[str, dict]:
    "The median of three turns of each contender."
    runs = {name: [] for name in names}
    for turn in range(3):
        for name in names:
            if turn and runs[name][0]["seconds"] > 10: continue
            print(f"{name} {case} {turn + 1}   ", end="\r", file=sys.stderr)
            runs[name].append(measure(name, case))
    return {name: dict(seconds=statistics.median(r["seconds"] for r in found), mb=max(r["mb"] for r in found), note=found[0]["note"])
            for name, found in runs.items()}


def table(title: str, case: str, names: list[str], limits: list[str]) -> None:
    "Print one table, the fastest first; ratios to the fastest limit."
    found = compare(names, case)
    limit = min(found[n]["seconds"] for n in names if n.partition("_")[2] in limits)
    print(f"| {title}, {case.replace('_', ' ')} | s | against the limit | peak MB | |\n|" + " --- |"*5)
    for name, r in sorted(found.items(), key=lambda item: item[1]["seconds"]):
        what = getattr(contenders, name).__doc__ + (" (limit)" if name.partition("_")[2] in limits else "")
        print(f"| {what} | {r['seconds']:.3g} | {r['seconds']/limit:.2f}× | {r['mb']:,} | {r['note']} |")
    print()


def linear() -> None:
    "mlproj from 1 to 100 million rows."
    print("| rows | profile s | s per million | peak MB | check s | s per million | peak MB |\n|" + " --- |"*7)
    for case, millions in {"1m": 1.0, "10m": 10.10328, "100m": 101.0328}.items():
        cells = [f"{millions:.0f} M"]
        for name in ("profile_mlproj", "check_mlproj"):
            r = compare([name], case)[name]
            cells += [f"{r['seconds']:.3g}", f"{r['seconds']/millions:.3f}", f"{r['mb']:,}"]
        print("| " + " | ".join(cells) + " |")
    print()


def setup() -> None:
    for name, packages in ENVIRONMENTS.items():
        folder = HOME/"venvs"/name
        if not (folder/"bin/python").exists(): subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder/"bin/pip", "install", "-q", *packages], check=True)
    import numpy as np
    import polars as pl
    from mlproj.data.source import read_csv
    from mlproj.examples.flights import data_folder
    (HOME/"data").mkdir(parents=True, exist_ok=True)
    flights = read_csv(data_folder()/"flights.csv.zip", [*NUMERIC, "carrier", "tailnum", "origin", "dest", "time_hour"])
    flights = flights.with_columns(pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ"))
    big = pl.concat([flights]*30).sample(fraction=1.0, shuffle=True, seed=0)
    rng = np.random.default_rng(0)
    for name, frame in {"10m": big, "1m": big[:1_000_000], "1m_ref": big[1_000_000:2_000_000]}.items(): frame.write_parquet(HOME/f"data/{name}.parquet")
    # no two values alike: a random fraction is added to every number
    big.with_columns([pl.col(c) + pl.Series(rng.random(big.height)) for c in NUMERIC]).write_parquet(HOME/"data/10m_continuous.parquet")


if __name__ == "__main__":
    wanted = sys.argv[1:] or [*TABLES, "linear"]
    if wanted == ["setup"]: sys.exit(setup())
    for title in wanted:
        if title == "linear": linear(); continue
        prefix, cases, limits = TABLES[title]
        names = [n for n in vars(contenders) if n.startswith(prefix)]
        for case in cases:
            left_out = LEFT_OUT.get((title, case), ()) or LEFT_OUT.get(title, ())
            table(title, case, [n for n in names if n.partition("_")[2] not in left_out], limits.split())
