"""Training of one small network on the flights: mlproj's `fit` beside Lightning and plain loops, in one run on one machine; prints the table of bench/README.md.

    PEERS=FOLDER PEERS_HOME=FOLDER python bench/training.py [TURNS]

PEERS holds the contenders, training/NAME.py; PEERS_HOME their environments and data. Network and data are those of training/_mlp.py: 5 embeddings and 16 numbers, two layers
of 256, Adam, batches of 1,024, 3 epochs. Here they stand as a user would bring them, a LightningModule that knows nothing of mlproj. Each measurement is a process of its own, in turn;
rows/s without the first epoch; the median of three turns, and the ratios of each turn, since the machine changes between turns.
"""
import json, os, statistics, subprocess, sys, tempfile
from pathlib import Path

CONTENDERS = dict(limit_loop="plain PyTorch loop, sliced tensors (limit)", limit_loop_fused="plain loop, fused Adam, one embedding table (limit)", ours="mlproj fit",
                  lightning_loader0="Lightning, DataLoader(TensorDataset) (peer)")


def ours() -> None:
    "One training by `fit`; prints one line of JSON."
    import polars as pl, pytorch_lightning as lightning, torch
    from sklearn.metrics import roc_auc_score
    from types import SimpleNamespace
    from mlproj.data.task import Task
    from mlproj.train.features import Tensors
    from mlproj.train.fit import fit
    from mlproj.train.network import as_model
    sys.path.insert(0, os.environ["PEERS"])
    from common import CAT, NUM
    parts = [pl.read_parquet(Path(os.environ["PEERS_HOME"])/f"data/{name}.parquet") for name in ("train", "test")]
    words = [{v: i + 1 for i, v in enumerate(sorted(parts[0][c].drop_nulls().unique()))} for c in CAT]
    mean, sd = (parts[0].select(getattr(pl.col(c).cast(pl.Float64).fill_nan(None), how)() for c in NUM).row(0) for how in ("mean", "std"))
    train, test = (Tensors(p.select(((pl.col(c) - m)/s).fill_nan(None).fill_null(0).cast(pl.Float32) for c, m, s in zip(NUM, mean, sd)).to_numpy(order="c"),
                           p.select(pl.col(c).replace_strict(w, default=0, return_dtype=pl.Int64).fill_null(0) for c, w in zip(CAT, words)).to_numpy(order="c"),
                           p["y"].cast(pl.Float32).to_numpy()) for p in parts)

    class MLP(lightning.LightningModule):
        def __init__(self, sizes, hidden=256):
            super().__init__()
            self.emb = torch.nn.ModuleList(torch.nn.Embedding(n, min(32, n//2 + 1)) for n in sizes)
            d = len(NUM) + sum(e.embedding_dim for e in self.emb)
            self.net = torch.nn.Sequential(torch.nn.Linear(d, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1))
        def forward(self, num, cat): return self.net(torch.cat([num] + [e(cat[:, i]) for i, e in enumerate(self.emb)], 1)).squeeze(1)
        def training_step(self, batch, i): return torch.nn.functional.binary_cross_entropy_with_logits(self(batch[0], batch[1]), batch[2])
        def configure_optimizers(self): return torch.optim.Adam(self.parameters(), 1e-3)

    lightning.seed_everything(0, verbose=False)
    task, sizes = Task("binary", "late"), tuple(len(w) + 1 for w in words)
    model = as_model(MLP(sizes), SimpleNamespace(width=len(NUM), cardinalities=sizes), task)
    few = Tensors(*(a[:5000] for a in (test.x_numbers, test.x_codes, test.y)))  # peers do not validate; what the best epoch needs is counted in "fit s"
    with tempfile.TemporaryDirectory() as folder: fitted = fit(model, task, train, few, folder, max_epochs=3, batch_size=1024, accelerator="cpu")
    print("RESULT " + json.dumps(dict(rows_s=fitted.rows_per_second, fit_s=fitted.seconds, rows=len(train), auc=float(roc_auc_score(test.y, model.predict(test.x_numbers, test.x_codes))))))


def measure(name: str) -> dict:
    peers = Path(os.environ["PEERS"])
    command = [sys.executable, __file__, "ours"] if name == "ours" else [str(Path(os.environ["PEERS_HOME"])/"venvs/base/bin/python"), str(peers/f"training/{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(peers), PYTHONWARNINGS="ignore"))
    said = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not said: raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(said[0][7:])


def main(turns: int) -> None:
    runs = {name: [] for name in CONTENDERS}
    for turn in range(turns):
        for name in CONTENDERS:
            runs[name].append(measure(name))
            print(f"{name:20}{runs[name][-1]['rows_s']:12,.0f} rows/s", file=sys.stderr)
    of = lambda name, other: statistics.median(a["rows_s"]/b["rows_s"] for a, b in zip(runs[name], runs[other]))
    print("| training | rows/s | of the plain loop | against Lightning | fit s | test AUC |\n| --- | --- | --- | --- | --- | --- |")
    for name, label in CONTENDERS.items():
        found = {key: statistics.median(r[key] for r in runs[name]) for key in ("rows_s", "fit_s", "auc")}
        print(f"| {label} | {found['rows_s']:,.0f} | {of(name, 'limit_loop'):.2f} | {of(name, 'lightning_loader0'):.2f}× | {found['fit_s']:.1f} | {found['auc']:.4f} |")


if __name__ == "__main__":
    if not {"PEERS", "PEERS_HOME"} <= set(os.environ): raise SystemExit(__doc__)
    if sys.argv[1:] == ["ours"]: ours()
    else: main(int((sys.argv[1:] or [3])[0]))
