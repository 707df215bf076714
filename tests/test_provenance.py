"A run's code, kept and had again: whatever lies in the working tree, whatever the user has told git."
import hashlib, json, os, random, shutil, subprocess, threading, time
from pathlib import Path

import pytest

from mlproj.project import MlprojError
from mlproj.provenance import ONE, begin_provenance, checkout, look, write_provenance

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
ME = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in dict(NAME="a", EMAIL="a@example.org").items()}


def git(at: Path, *args) -> str:
    done = subprocess.run(["git", "-c", "commit.gpgsign=false", "-c", "protocol.file.allow=always", *args], cwd=at, env=os.environ | ME, capture_output=True, text=True)
    assert done.returncode == 0, (args, done.stderr)
    return done.stdout


def repository(folder: Path, files: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    write(folder, files)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first", "--allow-empty")
    return folder


def write(folder: Path, files: dict) -> None:
    for path, content in files.items():
        (folder/path).parent.mkdir(parents=True, exist_ok=True)
        (folder/path).write_bytes(content if isinstance(content, bytes) else content.encode())


def files(folder: Path) -> dict:
    "What lies in a folder, independent of git: path → what it is and holds."
    def one(path: Path):
        if path.is_symlink(): return "link", os.readlink(path)
        return "program" if path.stat().st_mode & 0o100 else "file", path.read_bytes()
    return {str(p.relative_to(folder)): one(p) for p in folder.rglob("*") if (p.is_file() or p.is_symlink()) and ".git" not in p.relative_to(folder).parts}


def recorded(root: Path, folder: Path) -> Path:
    "The folder of a run that wrote its provenance."
    run = folder/"runs"/"20260101-000000-aaaa"
    run.mkdir(parents=True)
    write_provenance(begin_provenance(root), run)
    return run


def facts(run: Path) -> dict: return json.loads((run/"provenance.json").read_text())


def change(root: Path) -> None:
    "Every kind of change at once, half of it staged."
    write(root, {"changed.py": "x = 2\n", "new folder/new ü\n\"file\".py": "y = 1\n", "empty": "", "bytes.bin": bytes(range(256))*9, "crlf.txt": "a\r\nB\r\n", "no end.txt": "no newline, two"})
    (root/"gone.py").unlink()
    (root/"tool.sh").chmod(0o755)
    (root/"was file").unlink(), (root/"was file").symlink_to("changed.py")
    (root/"was folder"/"inner").unlink(), (root/"was folder").rmdir(), write(root, {"was folder": "now a file"})
    (root/"became folder").unlink(), write(root, {"became folder/inner": "1"})
    (root/"broken link").symlink_to("nowhere")
    git(root, "add", "changed.py", "bytes.bin")
    git(root, "mv", "renamed.py", "other name.py")
    write(root, {"changed.py": "x = 3\n", "staged and gone": ""})
    git(root, "add", "staged and gone")
    (root/"staged and gone").unlink()
    git(root, "add", "-N", "empty")


FIRST = {"changed.py": "x = 1\n", "gone.py": "", "tool.sh": "#!/bin/sh\n", "was file": "f", "was folder/inner": "1", "became folder": "f", "bytes.bin": bytes(256)*3, "crlf.txt": "a\r\nb\r\n", "no end.txt": "no newline",
         "renamed.py": "z = 1\n"*20, "same.py": "", ".gitignore": "ignored\n"}


@pytest.mark.parametrize("settings", [{}, {"core.autocrlf": "true"}, {"core.autocrlf": "input"}, {"diff.noprefix": "true", "color.ui": "always", "apply.whitespace": "fix", "core.quotePath": "false", "diff.renames": "copies", "status.renames": "true",
                                      "diff.external": "false", "diff.mnemonicPrefix": "true", "diff.context": "0", "status.showUntrackedFiles": "no", "core.hooksPath": "/nowhere"}, {"core.splitIndex": "true"}], ids=lambda s: next(iter(s), "plain"))
def test_every_kind_of_change_is_had_again_and_the_user_notices_nothing(tmp_path, settings):
    root = repository(tmp_path/"project", FIRST)
    for key, value in settings.items(): git(root, "config", key, value)
    change(root)
    write(root, {"ignored": "secret"})
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    run, there = recorded(root, tmp_path), tmp_path/"there"
    with checkout(run, root, there) as code:
        expected = {k: v for k, v in files(root).items() if k != "ignored"}
        if settings.get("core.autocrlf"):  # git itself does not give line ends back then: the text is equal
            plain = lambda d: {k: (kind, c.replace(b"\r\n", b"\n") if isinstance(c, bytes) and b"\0" not in c else c) for k, (kind, c) in d.items()}
            assert plain(files(code)) == plain(expected)
        else: assert files(code) == expected
    assert not there.exists() and git(root, "worktree", "list").count("\n") == 1
    after = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert after == before and facts(run)["git"]["dirty"]


@pytest.mark.parametrize("seed", range(8))
def test_random_edits_are_had_again(tmp_path, seed):
    rng = random.Random(seed)
    content = lambda: rng.choice([b"", b"a\n", b"a\r\nb", rng.randbytes(rng.randrange(400)), b"line\n"*rng.randrange(40)])
    names = [f"{rng.choice(['', 'a/', 'b/c/', 'd e/'])}f{n}" for n in range(30)]
    root = repository(tmp_path/"project", {n: content() for n in names})
    for step in range(40):
        path = root/rng.choice([*names, f"a/new{step}", f"z/{step}"])
        kind = rng.choice(["write", "write", "delete", "mode", "link", "stage"])
        if kind == "write" and not path.is_symlink(): write(root, {str(path.relative_to(root)): content()})
        if kind == "delete": path.unlink(missing_ok=True)
        if kind == "mode" and path.is_file() and not path.is_symlink(): path.chmod(rng.choice([0o644, 0o755]))
        if kind == "link":
            path.unlink(missing_ok=True), path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(rng.choice(["f1", "../x", "/etc/hosts"]))
        if kind == "stage" and os.path.lexists(path): git(root, "add", str(path))
    with checkout(recorded(root, tmp_path), root, tmp_path/"there") as code: assert files(code) == files(root)


def test_a_change_of_the_same_size_within_the_same_tick_is_seen(tmp_path):
    root = repository(tmp_path/"project", {f"f{n}": "a" for n in range(50)})
    for n in range(50): write(root, {f"f{n}": "b"})
    git(root, "add", "-A")
    for n in range(50): write(root, {f"f{n}": "c"})
    with checkout(recorded(root, tmp_path), root, tmp_path/"there") as code: assert files(code) == files(root)


def test_a_clean_tree_has_no_patch(tmp_path):
    root = repository(tmp_path/"project", FIRST)
    run = recorded(root, tmp_path)
    assert not (run/"patch.diff").exists() and not facts(run)["git"]["dirty"] and facts(run)["git"]["patch"] is None
    assert facts(run)["git"]["tree"] == git(root, "rev-parse", "HEAD^{tree}").strip()
    assert (facts(run)["git"]["commit"], facts(run)["git"]["branch"]) == (git(root, "rev-parse", "HEAD").strip(), git(root, "branch", "--show-current").strip())
    git(root, "checkout", "-q", "--detach")
    assert look(root).branch is None


def test_before_the_first_commit_the_patch_is_everything(tmp_path):
    root = tmp_path/"project"
    write(root, {"a.py": "1", "b/c.py": "2"})
    git(root, "init", "-q")
    run = recorded(root, tmp_path)
    assert facts(run)["git"]["commit"] is None
    with checkout(run, root, tmp_path/"there") as code: assert files(code) == files(root)


def test_a_project_within_a_larger_repository_is_found_in_its_checkout(tmp_path):
    top = repository(tmp_path/"all", {"lib/help.py": "1", "projects/churn/settings.ini": ""})
    write(top, {"lib/help.py": "2", "projects/churn/new.py": ""})
    run = recorded(top/"projects/churn", tmp_path)
    with checkout(run, top/"projects/churn", tmp_path/"there") as code:
        assert code == tmp_path/"there/projects/churn" and files(code) == files(top/"projects/churn")
        assert (code/"../../lib/help.py").read_text() == "2"


def test_the_store_is_no_part_of_the_code_even_if_nobody_ignores_it(tmp_path, monkeypatch):
    monkeypatch.delenv("MLPROJ_STORE", raising=False)
    root = repository(tmp_path/"project", {"a.py": ""})
    write(root, {".mlproj/tables/x.parquet": "1"})
    assert not look(root).dirty
    monkeypatch.setenv("MLPROJ_STORE", str(root/"else[w]here"))
    write(root, {"else[w]here/x": "1"})
    assert b"parquet" in look(root).patch and b"else[w]here" not in look(root).patch


def test_large_files_and_inner_repositories_are_left_out_and_named(tmp_path):
    root = repository(tmp_path/"project", {"a.py": ""})
    write(root, {"big.bin": bytes(ONE + 1), "small.py": "1"})
    repository(root/"inner", {"x": "1"})
    (root/"bare").mkdir(), git(root/"bare", "init", "-q")
    run = recorded(root, tmp_path)
    assert facts(run)["git"]["left_out"] == ["bare/", "big.bin", "inner/"] and (run/"patch.diff").stat().st_size < 1000
    with checkout(run, root, tmp_path/"there") as code: assert set(files(code)) == {"a.py", "small.py"}


def test_submodules_stand_at_the_commit_the_run_saw(tmp_path):
    library = repository(tmp_path/"library", {"lib.py": "1"})
    root = repository(tmp_path/"project", {"a.py": ""})
    git(root, "submodule", "add", "-q", str(library), "lib")
    git(root, "commit", "-qam", "with a library")
    write(root/"lib", {"lib.py": "2"})
    git(root/"lib", "commit", "-qam", "moved on, not known to the project")
    run = recorded(root, tmp_path)
    git(root/"lib", "checkout", "-q", "HEAD~")
    with checkout(run, root, tmp_path/"there") as code: assert (code/"lib/lib.py").read_text() == "2"
    write(root/"lib", {"lib.py": "3"})
    assert look(root).left_out == ["lib/"]  # changes inside of it are in no patch
    shutil.rmtree(root/"lib"), (root/"lib").mkdir()
    with pytest.raises(MlprojError, match="submodule lib cannot be had at .*; git submodule update --init lib"):
        with checkout(run, root, tmp_path/"there"): pass
    assert not (tmp_path/"there").exists()


def test_filters_such_as_lfs_work_in_a_checkout(tmp_path):
    "A filter that keeps contents outside of git, as LFS does."
    store = tmp_path/"outside"
    store.mkdir()
    (tmp_path/"clean").write_text(f'#!/bin/sh\ncat > "{store}/t.$$"\nh=$(sha256sum < "{store}/t.$$" | cut -c1-64)\nmv "{store}/t.$$" "{store}/$h"\necho $h\n')
    (tmp_path/"smudge").write_text(f'#!/bin/sh\nread h\ncat "{store}/$h"\n')
    for name in ("clean", "smudge"): (tmp_path/name).chmod(0o755)
    root = tmp_path/"project"
    root.mkdir(), git(root, "init", "-q")
    git(root, "config", "filter.outside.clean", str(tmp_path/"clean")), git(root, "config", "filter.outside.smudge", str(tmp_path/"smudge"))
    repository(root, {".gitattributes": "*.bin filter=outside -text\n", "a.bin": bytes(1000), "b.bin": b"b"*1000})
    write(root, {"a.bin": b"a"*1000, "new.bin": b"n"*1000})
    run = recorded(root, tmp_path)
    assert hashlib.sha256(b"a"*1000).hexdigest() in (run/"patch.diff").read_text() and "aaaa" not in (run/"patch.diff").read_text()
    with checkout(run, root, tmp_path/"there") as code: assert files(code) == files(root)


def test_inside_of_a_hook_the_right_repository_is_asked(tmp_path, monkeypatch):
    root, other = repository(tmp_path/"project", {"a": "1"}), repository(tmp_path/"other", {"b": "1"})
    monkeypatch.setenv("GIT_DIR", str(other/".git")), monkeypatch.setenv("GIT_INDEX_FILE", str(other/".git/index"))
    found = look(root)
    monkeypatch.undo()
    assert found.commit == git(root, "rev-parse", "HEAD").strip() and not found.dirty


def test_a_merge_conflict_and_a_lock_of_git_do_not_matter(tmp_path):
    root = repository(tmp_path/"project", {"a.py": "1\n"})
    main = git(root, "branch", "--show-current").strip()
    git(root, "checkout", "-qb", "side"), write(root, {"a.py": "2\n"}), git(root, "commit", "-qam", "2")
    git(root, "checkout", "-q", main), write(root, {"a.py": "3\n"}), git(root, "commit", "-qam", "3")
    subprocess.run(["git", "merge", "side"], cwd=root, env=os.environ | ME, capture_output=True)
    (root/".git/index.lock").write_text("")
    with checkout(recorded(root, tmp_path), root, tmp_path/"there") as code:
        assert "<<<<<<<" in (code/"a.py").read_text() and files(code) == files(root)


def test_a_worktree_is_a_project_like_any_other(tmp_path):
    root = repository(tmp_path/"project", {"a.py": "1\n"})
    git(root, "worktree", "add", "-q", str(tmp_path/"second"))
    write(tmp_path/"second", {"b.py": ""})
    with checkout(recorded(tmp_path/"second", tmp_path), tmp_path/"second", tmp_path/"there") as code:
        assert set(files(code)) == {"a.py", "b.py"}
        assert look(code).commit == look(root).commit and look(code).dirty  # a run inside has a provenance of its own
    assert git(root, "worktree", "list").count("\n") == 2


def test_a_commit_that_was_amended_away_is_still_had(tmp_path):
    root = repository(tmp_path/"project", {"a.py": "1"})
    run = recorded(root, tmp_path)
    write(root, {"a.py": "2"}), git(root, "commit", "-qa", "--amend", "-m", "other")
    with checkout(run, root, tmp_path/"there") as code: assert (code/"a.py").read_text() == "1"


def refusal(run, root, folder) -> str:
    with pytest.raises(MlprojError) as error:
        with checkout(run, root, folder): pass
    return str(error.value)


def test_what_cannot_be_had_again_is_said_in_one_line(tmp_path, monkeypatch):
    root = repository(tmp_path/"project", {"a.py": "1"})
    git(root, "commit", "-qm", "second", "--allow-empty")
    write(root, {"a.py": "2"})
    run, there = recorded(root, tmp_path), tmp_path/"there"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{root}", "shallow")
    git(root, "stash", "-q"), write(root, {"b": ""}), git(root, "add", "b"), git(root, "commit", "-qm", "third")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{root}", "shallower")
    with checkout(run, tmp_path/"shallow", there) as code: assert (code/"a.py").read_text() == "2"  # it has the one commit
    assert "is not in this repository; git fetch --unshallow" in refusal(run, tmp_path/"shallower", there)
    assert "is not in this repository; fetch it" in refusal(run, repository(tmp_path/"else", {"c": ""}), there)
    assert "not a git repository" in refusal(run, tmp_path, there)
    there.mkdir(), (there/"x").write_text("mine")
    assert "the folder is not empty" in refusal(run, root, there) and (there/"x").read_text() == "mine"
    shutil.rmtree(there)
    patch = (run/"patch.diff").read_text()
    (run/"patch.diff").write_text(patch.replace("-1", "-7"))
    assert "is not what the run wrote" in refusal(run, root, there)
    (run/"provenance.json").write_text((run/"provenance.json").read_text().replace(facts(run)["git"]["patch"], hashlib.sha256((run/"patch.diff").read_bytes()).hexdigest()))
    assert "patch.diff does not apply" in refusal(run, root, there) and not there.exists()
    monkeypatch.setenv("PATH", str(tmp_path/"nothing"))
    assert "there is no git command; install git" in refusal(run, root, there)
    (run/"provenance.json").unlink()
    assert "says nothing about its code" in refusal(run, root, there)


def test_a_checkout_left_by_a_killed_process_is_no_obstacle(tmp_path):
    root = repository(tmp_path/"project", {"a.py": "1"})
    run, there = recorded(root, tmp_path), tmp_path/"there"
    killed = checkout(run, root, there)
    killed.__enter__()
    shutil.rmtree(there)  # the folder was cleaned away, git still has it in its list
    with checkout(run, root, there) as code: assert (code/"a.py").exists()
    assert git(root, "worktree", "list").count("\n") == 1


def test_checkouts_at_the_same_time_do_not_disturb_each_other(tmp_path):
    root = repository(tmp_path/"project", FIRST)
    change(root)
    run, found = recorded(root, tmp_path), []
    def one(n):
        with checkout(run, root, tmp_path/f"there {n}") as code: found.append(files(code))
    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(found) == 6 and all(f == files(root) for f in found) and git(root, "worktree", "list").count("\n") == 1


def fake_git(folder: Path, text: str, monkeypatch) -> None:
    folder.mkdir()
    (folder/"git").write_text(text)
    (folder/"git").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("text, said", [("#!/bin/sh\nexec /bin/sleep 60\n", "git did not answer within 0.2 s"), ("#!/bin/sh\nexit 3\n", "git exits with 3"), ("#!/bin/sh\necho nonsense\n", ""), ("not a program", "there is no git command")])
def test_a_git_that_hangs_or_is_broken_costs_only_its_answer(tmp_path, monkeypatch, text, said):
    root = repository(tmp_path/"project", {"a.py": "1"})
    fake_git(tmp_path/"bin", text, monkeypatch)
    run = tmp_path/"run"
    run.mkdir()
    begun = time.monotonic()
    write_provenance(begin_provenance(root, patience=0.2), run)
    assert facts(run)["git"] is None and said in facts(run)["no_git"] and facts(run)["host"] and time.monotonic() - begun < 30
    assert json.loads((run/"environment.json").read_text())


def test_a_run_waits_no_longer_than_it_is_told(tmp_path, monkeypatch):
    fake_git(tmp_path/"bin", "#!/bin/sh\nexec /bin/sleep 60\n", monkeypatch)
    run = tmp_path/"run"
    run.mkdir()
    pending = begin_provenance(tmp_path, patience=2)
    write_provenance(pending, run, wait=0.1)
    assert pending.thread.is_alive() and facts(run)["no_git"] == "git did not answer within 0.1 s"
