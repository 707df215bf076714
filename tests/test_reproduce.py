"A recorded run, run again in a clean checkout: the same to the last bit, whatever has happened to the working tree since."
import json, os

import pytest

from mlproj.project import MlprojError, Project
from mlproj.reproduce import reproduce
from projects import GitProject


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project under git with one run of a working tree that was not committed."
    made = GitProject.make(tmp_path_factory.mktemp("reproduce")/"project", 0.03)
    before = {name: os.environ.get(name) for name in ("BENTOML_HOME", "MLPROJ_STORE")}
    os.environ["BENTOML_HOME"] = str(tmp_path_factory.mktemp("bentoml"))
    os.environ.pop("MLPROJ_STORE", None)
    made.edit("cleaning.py", ("DEPARTURE = 1.0", "DEPARTURE = 0.5"))
    made.recorded = made.run()
    yield made
    for name, value in before.items(): os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def test_a_run_of_uncommitted_code_comes_out_equal_to_the_last_bit(project):
    project.edit("cleaning.py", ("DEPARTURE = 0.5", "DEPARTURE = 0.0"))  # work goes on
    project.commit("second")
    said = []
    found = reproduce(project.recorded, project.project, say=said.append)
    assert found.equal and not found.first and found.environment == (), str(found)
    assert [*found.stages] == ["data", "contract", "split", "audit", "features", "baseline", "train", "evaluate"]
    assert "with its patch" in said[-1]
    assert project.git("worktree", "list").count("\n") == 1


def test_another_environment_is_said(project):
    path = project.recorded.path/"environment.json"
    recorded = path.read_text()
    facts = json.loads(recorded)
    path.write_text(json.dumps(facts | dict(python="3.10.1", packages=facts["packages"] | dict(polars="0.1.0", rich="0.1"))))
    try: found = reproduce(project.recorded, project.project)
    finally: path.write_text(recorded)
    assert [line.partition(" → ")[0] for line in found.environment] == ["polars 0.1.0", "python 3.10.1"] and found.equal


def test_a_commit_that_is_gone_is_one_line(project, tmp_path):
    other = GitProject.make(tmp_path/"other", 0.01)
    with pytest.raises(MlprojError, match="commit [0-9a-f]{12} is not in this repository"): reproduce(project.recorded, Project(other.folder, "cleaning"))
