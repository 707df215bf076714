"The commands of a packaged model, as processes: which bundle is meant, and one line for whatever is wrong with it."
import os
import re
import shutil
import subprocess
import sys

import pytest
from bundles import environment, small_bundle, small_rows

from mlproj.serve.bundle import Bundle
from mlproj.serve.registry import Registry


def mlproj(home, *args, cwd=None):
    done = subprocess.run([sys.executable, "-m", "mlproj.cli", *map(str, args)], capture_output=True, text=True, cwd=cwd or home, env=environment(home))
    return done.returncode, done.stdout, done.stderr


def test_a_folder_of_data_with_the_name_of_a_model_does_not_hide_it(tmp_path):
    tag = Registry(tmp_path/"home").add(small_bundle(tmp_path/"b"))
    (tmp_path/"flights").mkdir()
    code, out, err = mlproj(tmp_path/"home", "show", "flights:latest", cwd=tmp_path)
    assert code == 0 and tag in out, err
    Registry(tmp_path/"home").promote(tag)
    code, out, err = mlproj(tmp_path/"home", "show", "flights", cwd=tmp_path)
    assert code == 0 and tag in out, err
    code, out, err = mlproj(tmp_path/"home", "show", "./flights", cwd=tmp_path)
    assert code == 1 and not out and "flights/manifest.json: is missing" in err and err.count("\n") == 1


@pytest.mark.parametrize("command", [("show",), ("show", "--json"), ("score", "in.parquet", "out.parquet", "--model"), ("export", "new", "--to", "onnx", "--model")])
def test_a_bundle_that_is_damaged_is_one_line(tmp_path, command):
    bundle = small_bundle(tmp_path/"b")
    small_rows(Bundle.open(bundle).contract).write_parquet(tmp_path/"in.parquet")
    assert mlproj(tmp_path, *command, bundle)[0] == 0
    shutil.rmtree(tmp_path/"new", ignore_errors=True); (tmp_path/"out.parquet").unlink(missing_ok=True)
    data = (bundle/"model.onnx").read_bytes()
    (bundle/"model.onnx").write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    code, out, err = mlproj(tmp_path, *command, bundle)
    assert code == 1 and not out and "model.onnx: is not what the manifest says" in err and err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["b", "in.parquet"]


def test_an_error_in_an_exported_function_names_its_notebook_and_cell(mlproj):
    (mlproj.folder/"broken.py").write_text("from mlproj.examples.flights import schedule\ndef table(folder=None, fraction=1.0): return schedule(None)\n")
    done = mlproj("run", "data.source._target_=broken.table", "tracking=disabled", f"data.contract={mlproj.contract}")
    assert done.returncode == 1 and re.search(r"data\.source: .*; raised in nbs/examples/flights\.ipynb, cell \d+, line \d+$", done.stderr), done.stderr


def test_the_traceback_of_a_bug_names_notebook_and_cell(mlproj):
    code = "import mlproj.report, mlproj.cli, sys\nmlproj.report.render = lambda *a: mlproj.report.say_number('x')\nsys.argv = ['mlproj', 'report']\nmlproj.cli._ledger = lambda: type('L', (), dict(get=lambda self, run: run))()\nmlproj.cli.main()"
    done = subprocess.run([sys.executable, "-c", code], env=mlproj.env, capture_output=True, text=True)
    assert done.returncode == 1 and re.search(r"in say_number  \(nbs/51_report\.ipynb, cell \d+, line \d+\)\n[\s\S]*TypeError", done.stderr), done.stderr
