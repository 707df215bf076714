"The commands that explain results, as a person meets them: the first line is what matters, an error is one line, nothing is a traceback."
import json, os, subprocess, sys

import pytest

from conftest import ROOT


@pytest.fixture
def said(tmp_path):
    "The command in a folder of its own, without runs: exit code, what it says, what it says on stderr."
    env = {k: v for k, v in os.environ.items() if k != "MLPROJ_STORE"} | dict(PYTHONPATH=str(ROOT), BENTOML_HOME=str(tmp_path/"bentoml"), BENTOML_DO_NOT_TRACK="True")
    def call(*args):
        done = subprocess.run([sys.executable, "-m", "mlproj.cli", *args], cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr
    return call


def test_where_there_are_no_runs_the_list_says_where_it_has_looked(said, tmp_path):
    code, out, err = said("runs")
    assert code == 1 and not out and f"{tmp_path}/.mlproj/runs: there are no runs yet" in err and "mlproj run" in err and err.count("\n") == 1
    code, out, err = said("runs", "--json")
    assert code == 0 and json.loads(out) == []


@pytest.mark.parametrize("args", [("runs", "--last", "0"), ("runs", "--last=-1"), ("bisect", "a", "b", "--budget", "1"), ("bisect", "a", "b", "--seeds", "1"), ("vacuum", "x", "--hours=-1")])
def test_a_number_that_makes_no_sense_is_refused_in_one_line(said, args):
    code, out, err = said(*args)
    assert code == 2 and not out and err.startswith("mlproj: Invalid value for '--") and err.count("\n") == 1


def test_a_note_says_where_it_stands(said, tmp_path):
    code, out, err = said("note", "the feed was late")
    assert (code, out, err) == (0, "noted in .mlproj/notes.jsonl\n", "") and "the feed was late" in (tmp_path/".mlproj"/"notes.jsonl").read_text()
    assert "**note** the feed was late" in said("journal", "today")[1]


@pytest.mark.parametrize("args", [("diff",), ("diff", "nothing"), ("diff", "nothing", "latest"), ("reproduce",), ("bisect", "a", "b")])
def test_a_run_that_is_not_there_is_one_line(said, args):
    code, out, err = said(*args)
    assert code == 1 and not out and "no runs yet" in err and err.count("\n") == 1
