"The README tells the truth: its commands exist and run, and every command and chapter is in it."
import itertools, re, shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT/"README.md").read_text(encoding="utf-8")
COMMANDS = [line.removeprefix("$ ").partition("  #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line.startswith("$ ")]


def registered() -> set[str]:
    from mlproj.cli import app
    return {c.name or c.callback.__name__ for c in app.registered_commands} | {g.name for g in app.registered_groups}


def test_every_command_is_documented_and_every_documented_command_exists():
    named = set(re.findall(r"(?:`|^\$ )mlproj ([a-z]+)", README, re.M))
    assert named == registered()


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT/"Makefile").read_text(), re.M))
    assert {c.split()[1] for c in COMMANDS if c.startswith("make ")} <= targets


def test_every_chapter_is_in_the_index():
    chapters = {p.relative_to(ROOT).as_posix() for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert chapters == set(re.findall(r"\((nbs/[^)]+\.ipynb)\)", README))


def test_the_folders_in_the_readme_exist():
    for name in re.findall(r"^([\w.-]+/?) {2,}", re.search(r"```text\n(nbs/.*?)```", README, re.S)[1], re.M): assert (ROOT/name).exists(), name


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("mlproj ") and c.split()[1] not in ("run", "serve")])
def test_a_command_of_the_readme_runs(trained, command):
    from mlproj.serve.registry import Registry
    version = Registry(trained.folder/"bentoml").versions("flights")[-1].tag
    command = re.sub(r"flights:\S+", version, command).replace(" .mlproj/", f" {trained.folder/'store'}/")
    done = trained(*shlex.split(command)[1:])
    if command.startswith("mlproj rollback"): assert "no earlier version" in done.stderr or done.returncode == 0  # one run has nothing to go back to
    else: assert done.returncode == 0 and done.stdout + ("sync" in command)*" ", done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("mlproj run")])
def test_the_overrides_of_a_run_in_the_readme_compose(command):
    from mlproj.config import compose
    overrides = [a for a in command.split()[2:] if a != "-m"]
    for chosen in itertools.product(*[[f"{a.partition('=')[0]}={v}" for v in a.partition("=")[2].split(",")] for a in overrides]): assert compose(chosen)
