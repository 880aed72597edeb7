"""`warren agent run`: what an agent that means ill leaves in its tree, and what must not go in."""

import os
import socket
import stat
import subprocess

import pytest

from .run_fixtures import _own_server, api, folder, server  # noqa: F401

#: What each does in the tree, and what is then said of it. Nothing of it is written, everything else is.
ATTACKS = {
    "a link to a file outside": ("ln -s /etc/passwd evil", "evil: the link leads out"),
    "a link that climbs": ("ln -s ../../secret evil", "evil: the link leads out"),
    "a link that climbs behind a link": ("mkdir -p d; ln -s x/../../secret d/evil", "d/evil: the link leads out"),
    "a link into the repository": ("ln -s .git/hooks evil", "evil: the link leads into"),
    "a pipe": ("mkfifo evil", "evil: it is a device, a pipe"),
    "a socket": ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"evil\")'", "evil: it is a device, a pipe"),
    "a repository by another spelling": ("mkdir .GIT; echo x >.GIT/config", ".GIT/config: a repository"),
    "a repository of Windows' spelling": ("mkdir git~1; echo x >git~1/config", "git~1/config: a repository"),
    "a name that steers the terminal": ("touch \"$(printf 'e\\033[2Jvil')\"", "its name has control characters"),
    "a name of two lines": ("touch \"$(printf 'e\\nvil')\"", "its name has control characters"),
    "a name that is not UTF-8": ("touch \"$(printf 'e\\377vil')\"", "not UTF-8"),
    "ten gigabytes of nothing": ("truncate -s 10G evil", "evil: it is larger than"),
    "a file that cannot be too deep": ("d=evil; for i in $(seq 140); do d=$d/d; done; mkdir -p $d; touch $d/f", "it is in too many folders"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_may_not_be_here_is_refused_by_name(folder, attack):
    command, said = ATTACKS[attack]
    before = folder.state()
    done = folder.run(f"{command}; echo more >>README", "--apply", code=4)
    assert said in done.stderr, done.stderr
    assert "\x1b[2J" not in done.stdout + done.stderr
    after = folder.state()
    assert after.pop("README") == (b"hello\nmore\n", False)
    before.pop("README")
    assert after == before
    # What could not come is still there.
    [(sandbox, agent)] = folder.agents().items()
    assert agent["status"] == "hibernated"


#: In the place of GNU's: a listing comes by lines then, as in Alpine.
OTHER_FIND = """sudo sh -c 'printf "%s\\n" "#!/bin/sh" "case \\"\\$*\\" in *-printf*) exit 1;; esac" "exec /usr/bin/find \\"\\$@\\"" \
>/usr/local/bin/find; chmod 755 /usr/local/bin/find'"""


def test_odd_names_that_went_in_and_did_not_change_are_no_news(folder):
    folder.put({"two\nlines": "1\n", "a\ttab": "2\n", "changed\nthere": "3\n"})
    folder.run(f"{OTHER_FIND}; echo more >>README", "--apply", code=0)
    assert folder.read("README") == "hello\nmore\n"
    done = folder.run(f"{OTHER_FIND}; echo x >>\"$(printf 'changed\\nthere')\"; rm src/b.txt", "--apply", code=4)
    assert "there: it is there and could not be listed" in done.stderr.replace("\\n", " "), done.stderr
    assert [folder.read(name) for name in ("two\nlines", "a\ttab", "changed\nthere")] == ["1\n", "2\n", "3\n"]
    assert not (folder.path / "src/b.txt").exists()


def test_a_file_that_becomes_a_link_is_not_written_through(folder):
    outside = folder.path.parent / "outside"
    outside.write_text("outside\n")
    folder.run("rm README; ln -s src README; rm -r src; ln -s build src; mkdir -p build; echo x >build/a.txt", "--apply", code=None)
    assert os.readlink(folder.path / "README") == "src"
    # The folder went as a whole and the link stands in its place; nothing was written behind it.
    assert os.readlink(folder.path / "src") == "build" and not (folder.path / "build/a.txt").exists()


def test_a_folder_here_that_became_a_link_is_not_written_through(folder):
    outside = folder.path.parent / "outside"
    outside.mkdir()
    process, sandbox = folder.start("until [ -e /tmp/go ]; do sleep 0.1; done; echo x >>src/a.txt; echo n >src/n", "--apply")
    (folder.path / "src").rename(folder.path.parent / "before")
    (folder.path / "src").symlink_to(outside)
    folder.warren("exec", sandbox, "--", "touch", "/tmp/go")
    process.communicate(timeout=60)
    assert process.returncode == 4
    assert list(outside.iterdir()) == []


def test_the_repository_here_is_never_written(folder):
    before = {path: path.read_bytes() for path in (folder.path / ".git").rglob("*") if path.is_file()}
    folder.run("echo 'exit 1' >.git/hooks/pre-commit; git config core.pager evil; git -c user.name=x -c user.email=x@y commit -qam x --allow-empty; git init -q sub; echo s >sub/s", "--apply")
    assert before == {path: path.read_bytes() for path in (folder.path / ".git").rglob("*") if path.is_file()}
    assert folder.read("sub/s") == "s\n" and not (folder.path / "sub/.git").exists()


def test_hard_links_and_odd_modes_are_plain_files_here(folder):
    folder.run("ln README hard; cp /bin/true suid; chmod 4777 suid; echo x >w; chmod 777 w", "--apply")
    assert folder.read("hard") == "hello\n" and os.stat(folder.path / "hard").st_nlink == 1
    assert not os.stat(folder.path / "suid").st_mode & (stat.S_ISUID | stat.S_IWOTH)
    assert not os.stat(folder.path / "w").st_mode & stat.S_IWOTH


def test_more_files_than_a_patch_holds_are_refused_as_a_whole_with_a_way_out(folder):
    done = folder.run("mkdir many; cd many; seq 60000 | xargs touch", code=1, within=200)
    assert "more than a patch holds" in done.stderr and "many" in done.stderr
    [(sandbox, agent)] = folder.agents().items()
    assert agent["status"] == "hibernated"
    # A rule that is added there counts.
    folder.warren("exec", sandbox, "--cwd", "/workspace/project", "--shell", "--", "echo many/ >>.gitignore; echo x >x")
    assert "+++ b/x" in folder.warren("agent", "patch", sandbox).stdout


def test_rules_that_an_agent_adds_keep_its_build_there(folder):
    done = folder.run("mkdir -p web/node_modules; echo m >web/node_modules/m; echo node_modules/ >web/.gitignore; echo w >web/w")
    assert "b/web/w" in done.stdout and "b/web/.gitignore" in done.stdout and "node_modules/m" not in done.stdout
    done = folder.run("mkdir -p build; echo m >build/m", "--include-ignored")
    assert "b/build/m" in done.stdout


def test_an_agent_that_keeps_changing_things_does_not_keep_us(folder):
    done = folder.run("(while :; do date >>log.txt; rm -f x; touch x; done) & sleep 0.3", code=None)
    assert done.returncode in (0, 4) and "log.txt" in done.stdout + done.stderr


def test_a_full_disk_there_deletes_nothing_here(folder):
    folder.put({f"many/{number}": "as it was\n" for number in range(600)}).commit()
    full = "mkdir ~/j; cd ~/j; fallocate -l $(( $(df -k --output=avail / | tail -1) - 64 ))k a; i=0; while dd if=/dev/zero of=s$i bs=4k count=1 status=none && [ -s s$i ]; do i=$((i+1)); done; rm s1 s2 s3"
    before = folder.state()
    done = folder.run(f"rm many/7; {full}; true", "--apply")
    assert "wrote 1 file" in done.stderr
    before.pop("many/7")
    assert folder.state() == before


def test_what_cannot_be_looked_into_there_is_not_deleted_here(folder):
    before = folder.state()
    done = folder.run("rm picture; chmod 000 src", "--apply", code=4)
    assert "stays in the sandbox: src/a.txt" in done.stderr and "Permission denied" in done.stderr
    before.pop("picture")
    assert folder.state() == before


def test_a_sandbox_without_find_deletes_nothing_here(folder):
    before = folder.state()
    done = folder.run("sudo rm $(command -v find); echo x >README", "--apply", code=1)
    assert "could not list it (127)" in done.stderr and folder.state() == before


def test_hooks_credentials_and_links_do_not_take_anything_in(folder):
    secret = folder.path.parent / "secret"
    secret.write_text("outside\n")
    (folder.path / "door").symlink_to(secret)
    folder.git("config", "credential.helper", "store --file=hidden-value")
    folder.git("config", "http.https://example.com/.extraheader", "AUTHORIZATION: basic hidden-value")
    folder.git("remote", "add", "origin", "https://user:hidden-value@example.com/a/b.git")
    folder.put({".git/hooks/pre-commit": "#!/bin/sh\necho hidden-value\n", ".git/credentials": "hidden-value"})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.path / "a-socket"))
        os.mkfifo(folder.path / "a-pipe")
        done = folder.run("grep -rs hidden-value .git && echo found; cat door; git remote get-url origin; git status --short; ls .git/hooks; true")
    assert "found" not in done.stdout and "hidden-value" not in done.stdout and "outside" not in done.stdout
    assert "https://example.com/a/b.git" in done.stdout
    assert "a-pipe" in done.stderr and "a-socket" in done.stderr


def test_a_file_that_is_too_large_is_named(folder):
    with (folder.path / "large").open("wb") as file:
        file.truncate(3 << 20)
    done = folder.run("true", "--max-file-mb", "2", code=1)
    assert "large (3 MiB)" in done.stderr and ".gitignore" in done.stderr
    assert folder.run("stat -c %s large").stdout.startswith("3145728")


def test_no_repository_that_runs_code_comes_back(folder):
    """In a folder below a repository, or in none, git takes what looks like a bare repository for one."""
    below = folder.path / "below"
    below.mkdir()
    (below / "file").write_text("x\n")
    pwned = folder.path.parent / "pwned"
    command = (
        "mkdir -p objects refs/heads; echo x >objects/k; echo 0 >refs/heads/x; echo 'ref: refs/heads/main' >HEAD; echo more >>file;"
        f"printf '[core]\\n\\trepositoryformatversion=0\\n\\tbare=false\\n\\tworktree=.\\n\\tfsmonitor=\"touch {pwned}; false\"\\n' >config"
    )
    done = folder.run(command, "--apply", "--dir", str(below), code=4)
    assert "HEAD: it would make a repository" in done.stderr, done.stderr
    subprocess.run(["git", "status"], cwd=below, capture_output=True, timeout=30)
    assert not pwned.exists() and not (below / "HEAD").exists()
    assert (below / "file").read_text() == "x\nmore\n", "the rest comes"


def test_a_password_in_a_place_for_names_does_not_go_in(folder):
    with (folder.path / ".git/config").open("a") as config:
        config.write(
            '[branch "main"]\n\tremote = https://user:SECRET1@example.com/x\n[remote "https://user:SECRET2@example.com/x"]\n\tfetch = a\n'
            '[remote "p"]\n\turl = user:SECRET3@example.com:x\n[remote "s"]\n\turl = /srv/x?token=SECRET4\n[remote "o"]\n\turl = https://u:SECRET5@example.com/a\n'
        )
    done = folder.run("git config --list; ! grep -r SECRET .git", code=0)
    assert "SECRET" not in done.stdout and "remote.o.url=https://example.com/a" in done.stdout
