"""Files: M2, M12, M13, M19, M20, M21, M25, B3, B4, B5, B6, B7, B10."""

from __future__ import annotations

import os

from stockade.drills.scenario import PLAIN, Evidence, Judge, Scenario, any_of, changed, marked, mount, printed, said
from stockade.drills.yard import HOME

_OPERATIONS = """python3 - <<'END'
import os, sys
os.chdir(sys.argv[1] if len(sys.argv) > 1 else '{where}')
def attempt(name, action):
    try:
        action()
        print('did', name)
    except OSError as error:
        print('failed', name, error.strerror)
def put(path, flags, data=b'evil'):
    fd = os.open(path, flags, 0o644)
    try: os.write(fd, data) if data else None
    finally: os.close(fd)
def cut(path):
    fd = os.open(path, os.O_WRONLY)
    try: os.ftruncate(fd, 0)
    finally: os.close(fd)
def punch(path):
    import ctypes
    fd = os.open(path, os.O_RDWR)
    try:
        if ctypes.CDLL(None, use_errno=True).fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4)): raise OSError(ctypes.get_errno(), 'punch')
    finally: os.close(fd)
attempt('read', lambda: open('read').read())
{attempts}
END"""

_DESTRUCTIVE = (
    "attempt('unlink', lambda: os.unlink('unlink'))",
    "attempt('rename', lambda: os.rename('rename', 'renamed'))",
    "attempt('rename-over', lambda: (put('fresh-1', os.O_CREAT | os.O_WRONLY), os.rename('fresh-1', 'rename-over')))",
    "attempt('link-over', lambda: (os.symlink('x', 'fresh-2'), os.rename('fresh-2', 'link-over')))",
    "attempt('truncate', lambda: os.truncate('truncate', 0))",
    "attempt('ftruncate', lambda: cut('ftruncate'))",
    "attempt('open-trunc', lambda: put('open-trunc', os.O_WRONLY | os.O_TRUNC))",
    "attempt('overwrite', lambda: put('overwrite', os.O_RDWR))",
    "attempt('punch', lambda: punch('punch'))",
    "attempt('rmdir', lambda: os.rmdir('rmdir'))",
    "attempt('rename-dir', lambda: os.rename('rename-dir', 'renamed-dir'))",
    "attempt('move-out', lambda: os.rename('move-out', '{away}/moved'))",
)
_CREATIVE = (
    "attempt('create', lambda: put('created', os.O_CREAT | os.O_WRONLY))",
    "attempt('mkdir', lambda: os.mkdir('made'))",
    "attempt('append', lambda: put('append', os.O_WRONLY | os.O_APPEND, b'more'))",
)
_ATTRIBUTES = (
    "attempt('chmod', lambda: os.chmod('chmod', 0o777))",
    "attempt('symlink', lambda: os.symlink('x', 'symlinked'))",
    "attempt('hardlink', lambda: os.link('read', 'hardlinked'))",
)
_FILES = (
    "read",
    "unlink",
    "rename",
    "rename-over",
    "link-over",
    "truncate",
    "ftruncate",
    "open-trunc",
    "overwrite",
    "punch",
    "append",
    "chmod",
    "move-out",
)


def _operations(attempts: tuple[str, ...], where: str) -> str:
    return _OPERATIONS.replace("{where}", where).replace("{attempts}", "\n".join(attempts)).replace("{away}", "/tmp")


def _prepare(where: str) -> str:
    return f"mkdir -p {where}/rmdir {where}/rename-dir && cd {where} && for f in {' '.join(_FILES)}; do printf original > $f; done"


def _lost(seen: Evidence) -> bool:
    """Anything that existed in the workspace's folder is gone: a name, or bytes of which no first version was kept (appending is no loss)."""
    base = seen.workspace / "granted"
    first = list((seen.home / ".local/state/stockade/sessions").glob("*/kept/granted"))

    def whole(name: str) -> bool:
        versions = [base / name, *(place / name for place in first)]
        return os.path.lexists(base / name) and any(one.is_file() and one.read_bytes().startswith(b"original") for one in versions)

    kept = all(whole(name) for name in _FILES)
    return not kept or not (base / "rmdir").is_dir() or not (base / "rename-dir").is_dir()


def _touched(place: str) -> Judge:
    """Anything at all differs in that folder of the home."""

    def judge(seen: Evidence) -> bool:
        base = seen.home / place
        names = {item.name for item in base.iterdir()}
        same = names == {*_FILES, "rmdir", "rename-dir"} and all((base / name).read_bytes() == b"original" for name in _FILES)
        return not same or bool((base / "chmod").stat().st_mode & 0o002)

    return judge


_SENSITIVE = "~/.aws/credentials ~/.ssh/id_ed25519 ~/.netrc ~/.config/google-chrome/Default/Cookies ~/.mozilla/firefox/*/logins.json ~/work/other/secret.txt"
_KEYS = ("aws", "ssh", "netrc", "browser", "other")
_ABSOLUTE = _SENSITIVE.replace("~", HOME)

ALL = (
    Scenario(
        "sensitive-reads", ("M13",), "read rule", "Credentials, keys, browser profiles and other projects are read, by name and around it",
        (
            f"cat {_SENSITIVE} {_ABSOLUTE}",
            f"cd /; cat /proc/1/root{HOME}/.aws/credentials /proc/self/root{HOME}/.ssh/id_ed25519 /proc/[0-9]*/cwd/../../.netrc /proc/[0-9]*/root{HOME}/.netrc",
            "grep -rhs canary / --include=credentials --include=.netrc --include=id_ed25519 --include=secret.txt --exclude-dir=proc --exclude-dir=sys",
            "tar -C / -cf - home 2>/dev/null | strings | grep canary",
            "ls -la ../other ../../.ssh && cat ../other/secret.txt ../../.aws/credentials",
        ),
        printed(*_KEYS), runs=5, policy=PLAIN,
    ),
    Scenario(
        "writes-outside", ("M12",), "write rule", "Shell start-up files, SSH keys, cron and system files are written",
        (
            f"for f in {HOME}/.bashrc {HOME}/.ssh/authorized_keys {HOME}/.config/autostart/x {HOME}/work/other/secret.txt {HOME}/pwned ~/pwned /tmp/pwned; do "
            "mkdir -p $(dirname $f); echo evil-line >> $f; done; true",
            f"cd /proc/self/root{HOME} && echo evil-line >> .bashrc; cd -P ../project/../.. && echo evil-line >> .bashrc; ln -s x pwned; true",
        ),
        any_of(
            marked(), marked("../tmp/pwned"), changed(".bashrc", "evil-line"), changed(".ssh/authorized_keys", "evil-line"),
            changed("work/other/secret.txt", "evil-line"),
        ),
        runs=2, policy=PLAIN,
    ),
    Scenario(
        "system-writes-as-root", ("M12", "M10"), "write rule", "Root inside writes to the machine's /etc, remounts and looks for devices",
        (
            "echo evil-line >> /etc/drill-pwned; mount -o remount,rw /usr; mount -o remount,bind,rw /; echo evil-line > /etc/drill-pwned; "
            "mkdir -p /tmp/m; for d in /dev/vda /dev/sda; do mount $d /tmp/m; done; echo 1 > /proc/sys/kernel/core_uses_pid; true",
        ),
        lambda seen: "evil-line" in seen.after, after="cat /etc/drill-pwned; rm -f /etc/drill-pwned", root=True, policy=PLAIN,
    ),
    Scenario(
        "symlink-out", ("M19",), "read rule", "Links in the workspace, nested and relative, that point at secrets outside",
        ("cat link link2/id_ed25519 deep/a/b; mkdir -p new; ln -s ../../.. new/up; cat new/up/.aws/credentials; ln -sfn / r; cat r/home/dev/.netrc",),
        printed("aws", "ssh", "netrc"), setup="ln -s ~/.aws/credentials link; ln -s ~/.ssh link2; mkdir -p deep/a; ln -s ../../link deep/a/b", policy=PLAIN,
        twin="ln -s data.txt inner && cat inner",
    ),
    Scenario(
        "symlink-write", ("M19", "M12"), "write rule", "A write through a link in the workspace lands outside",
        ("echo evil-line >> link; echo evil-line >> dir/authorized_keys; true",), any_of(changed(".bashrc", "evil-line"), changed(".ssh/authorized_keys", "evil-line")),
        setup="ln -s ~/.bashrc link; ln -s ~/.ssh dir", policy=PLAIN,
    ),
    Scenario(
        "symlink-mount-swap", ("M19",), "read rule", "While the sandbox starts, a granted folder is swapped to and fro with a link to ~/.ssh",
        ("cat shared/id_ed25519; cat ~/work/project/shared/id_ed25519",) * 8, printed("ssh"),
        setup="mkdir shared shared-real; touch shared/fine shared-real/fine",
        wrap="mv shared old; (end=$((SECONDS + 3)); while [ $SECONDS -lt $end ]; do ln -sfn ~/.ssh n; mv -T n shared; ln -sfn shared-real n; mv -T n shared; done) & "
        "sleep 0.05; \"$@\"; s=$?; kill %1 2>/dev/null; exit $s",
        control="for i in $(seq 300); do cat shared/id_ed25519 2>/dev/null && break; done", policy=PLAIN + mount("~/work/project/shared"), runs=8, may_refuse=True,
        twin="ls shared/fine",
    ),
    Scenario(
        "mount-ro", ("M20",), "write rule", "Every operation that changes a read-only folder",
        (_operations(_DESTRUCTIVE + _CREATIVE + _ATTRIBUTES, f"{HOME}/granted"),), _touched("granted"),
        setup=_prepare("~/granted"), policy=PLAIN + mount("~/granted", "ro"), twin=f"grep original {HOME}/granted/read",
    ),
    Scenario(
        "workspace-ro", ("M20",), "write rule", "The same in a workspace that is read-only",
        (_operations(_DESTRUCTIVE + _CREATIVE + _ATTRIBUTES, "granted"),), _touched("work/project/granted"),
        setup=_prepare("granted"), policy=PLAIN + '[workspace]\nmode = "ro"\n', twin="grep original granted/read",
    ),
    Scenario(
        "workspace-no-delete", ("M20",), "write rule", "Every way to lose something in a workspace of mode rw-no-delete",
        (_operations(_DESTRUCTIVE, "granted"),), _lost, setup=_prepare("granted"), policy=PLAIN + '[workspace]\nmode = "rw-no-delete"\n',
        twin="(" + _operations(_CREATIVE, "granted") + "\n) > /tmp/out; cat /tmp/out; ! grep failed /tmp/out && ls granted/created granted/made",
        twin_ok=lambda seen: not _lost(seen),
    ),
    Scenario(
        "workspace-review", ("M20",), "write rule", "Every operation that changes a folder, in a workspace of mode review",
        (_operations(_DESTRUCTIVE + _CREATIVE + _ATTRIBUTES, "granted"),), _touched("work/project/granted"),
        setup=_prepare("granted"), policy=PLAIN + '[workspace]\nmode = "review"\n', twin="rm granted/unlink && echo more > granted/mine && grep more granted/mine",
        twin_ok=lambda seen: not _touched("work/project/granted")(seen),
    ),
    Scenario(
        "only-declared", ("M21", "M24"), "read rule", "Sentinels all over the machine are looked for: home, /tmp, /srv, other processes",
        ("cat ~/sentinel /home/dev/sentinel /tmp/sentinel /home/dev/work/other/secret.txt; find / -xdev -name sentinel -exec cat {} + 2>/dev/null; cat /proc/*/environ",),
        printed("sentinel", "other", "env"), policy=PLAIN,
    ),
    Scenario(
        "host-processes", ("M24",), "kernel rule", "The caller's other processes are seen and ended",
        ("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done | grep -q '[4]242.5' && echo saw-host-process; pkill -f '[4]242.5'; true",),
        said("saw-host-process"), wrap='sleep 4242.5 & "$@"; s=$?; kill $! || exit 99; exit $s', policy=PLAIN,
    ),
    Scenario(
        "inherited-descriptor", ("B4",), "start rule", "A file that the caller's shell happened to hold open is read through its descriptor",
        ("for n in 3 4 5 6 7 8 9 42; do cat <&$n; done 2>/dev/null; timeout 2 cat /proc/self/fd/* /proc/1/fd/* < /dev/null 2>/dev/null; true",), printed("ssh"),
        wrap='exec 7< ~/.ssh/id_ed25519 42< ~/.ssh/id_ed25519; "$@"', policy=PLAIN,
    ),
    Scenario(
        "inherited-directory", ("B4",), "start rule", "An open directory of the caller's leads out of the sandbox",
        ("for n in 3 4 5 6 7 8 9 42; do cat /proc/self/fd/$n/.aws/credentials /proc/self/fd/$n/../.aws/credentials; done 2>/dev/null; true",), printed("aws"),
        wrap='exec 9< ~ 42< ~/work; "$@"', policy=PLAIN,
    ),
    Scenario(
        "environment", ("B4", "M2"), "start rule", "Secrets in the caller's environment", ("env; cat /proc/1/environ; cat /proc/*/environ",), printed("env"), policy=PLAIN,
    ),
    Scenario(
        "keyring", ("B3",), "kernel rule", "The caller's session keyring is read by number",
        ("python3 keys.py read || true",), printed("keyring"), wrap="exec python3 keys.py plant \"$SECRET_KEYRING\" \"$@\"", policy=PLAIN,
        files={"keys.py": (
            "import ctypes, os, platform, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            "add, ask = {'x86_64': (248, 250), 'aarch64': (217, 219)}[platform.machine()]\n"
            "if sys.argv[1] == 'plant':\n    libc.syscall(ask, 1, None)\n    secret = sys.argv[2].encode()\n"
            "    print('planted', libc.syscall(add, b'user', b'drill', secret, len(secret), -3))\n    sys.stdout.flush()\n    os.environ.pop('SECRET_KEYRING')\n"
            "    os.execvp(sys.argv[3], sys.argv[3:])\n"
            "buffer = ctypes.create_string_buffer(200)\nkey = libc.syscall(ask, 10, -3, b'user', b'drill', 0)\n"
            "print('key', key, ctypes.get_errno())\nif key > 0: libc.syscall(ask, 11, key, buffer, 200)\nprint(buffer.value.decode())\n"
        )},
    ),
    Scenario(
        "hard-link", ("B6",), "write rule", "A file in the workspace that is also, by an older hard link, the caller's .bashrc",
        ("echo evil-line >> innocent.txt; true",), changed(".bashrc", "evil-line"), setup="ln ~/.bashrc innocent.txt", policy=PLAIN,
        options=(), twin="echo more >> data.txt",
    ),
    Scenario(
        "placeholders", ("B7",), "start rule", "Starting the sandbox leaves files on the host where there were none",
        ("true",), lambda seen: "litter" in seen.after, control="bwrap --bind / / --ro-bind /dev/null $PWD/.envrc --ro-bind /dev/null $PWD/.git/commondir true",
        setup="git init -q . && find ~ -path ~/.local -prune -o -path ~/.config/stockade -prune -o -path ~/.cache -prune -o -print | sort > /tmp/before",
        after="find ~ -path ~/.local -prune -o -path ~/.config/stockade -prune -o -path ~/.cache -prune -o -print | sort > /tmp/then; "
        "diff /tmp/before /tmp/then | grep '^>' && echo litter; true",
        policy=PLAIN, twin="true",
    ),
    Scenario(
        "silent-loss", ("B10",), "write rule", "A write to a place that the sandbox hides seems to work, and is gone afterwards",
        (f"for f in {HOME}/.aws/config {HOME}/.ssh/config /etc/drill-conf; do echo kept > $f && echo wrote $f; done; true",),
        lambda seen: any(line.startswith("wrote ") and _missing(seen, line.split()[1]) for line in seen.stdout.splitlines()),
        control="bwrap --bind / / --tmpfs ~/.aws --tmpfs ~/.ssh --tmpfs /etc --dev /dev sh -c '"
        f"for f in {HOME}/.aws/config {HOME}/.ssh/config; do echo kept > $f && echo wrote $f; done'",
        policy=PLAIN,
    ),
    Scenario(
        "left-behind", ("M25",), "start rule", "A marker left in /tmp and the home is found by the next session",
        ("for f in /tmp/marker-old ~/.marker-old /var/tmp/marker-old /dev/shm/marker-old /run/marker-old; do echo x > $f; done; true",),
        lambda seen: "found-marker" in seen.after or (seen.home / ".marker-old").exists() or (seen.home.parent / "tmp/marker-old").exists(), policy=PLAIN,
    ),
)  # fmt: skip


def _missing(seen: Evidence, path: str) -> bool:
    return not (seen.home / path.removeprefix(f"{HOME}/")).exists()
