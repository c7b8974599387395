"""The programs that an attack consists of: shell scripts that need a POSIX shell, coreutils and what else every Debian holds, and nothing of ours.

Each runs twice, in a sandbox and by the native control (`native.py`), with other arguments. INVARIANT: these texts are fixed, and no argument is ever
executed or read as a script, so that whoever names the arguments runs no program of theirs. Each ends by itself within seconds, and changes only what its arguments name.
"""

from __future__ import annotations

READ = 'cat -- "$@"'
OVERWRITE = 'for path; do echo evil > "$path"; done'
APPEND = 'for path; do : >> "$path" || exit 1; done'  # opens for writing, and writes nothing
LINK = 'ln -- "$1" "$2"'
FIND = 'name=$1; shift; find "$@" -maxdepth 4 -name "$name" 2>/dev/null; :'
# One operation ($1) on the directory $2, which holds `file`, `other` and the empty directory `empty`.
OPERATE = """
cd -- "$2" || exit 98
case $1 in
  overwrite) echo evil > file ;;
  append) echo evil >> file ;;
  truncate) truncate -s 0 file ;;
  create) echo evil > new ;;
  remove) rm -f file ;;
  rename) mv file new ;;
  replace) mv -f other file ;;
  mkdir) mkdir new ;;
  rmdir) rmdir empty ;;
  symlink) ln -s file new ;;
  hardlink) ln file new ;;
  fifo) mkfifo new ;;
  mode) chmod 777 file ;;
  times) touch -d '1999-01-01' file ;;
  *) exit 99 ;;
esac
"""
OPERATIONS = (
    "overwrite", "append", "truncate", "create", "remove", "rename", "replace", "mkdir", "rmdir", "symlink", "hardlink", "fifo", "mode", "times",
)  # fmt: skip
# A copy of id(1) in the directory $1 that belongs to nobody and says so.
SET_ID = 'cp /usr/bin/id "$1/id" && chown 65534:65534 "$1/id" && chmod 6755 "$1/id" && "$1/id" -u'
DEVICE = 'dd if="$1" of=/dev/null bs=8192 count=1 iflag=nonblock'
MAKE_DEVICE = 'mknod "$1" c "$2" "$3" && dd if="$1" of=/dev/null bs=8192 count=1 iflag=nonblock'

COMMAND_LINES = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\000' ' '; :"
KILL = 'kill -TERM "$1"'
KEYS = "cat /proc/keys"
DESCRIPTORS = 'for fd in /proc/self/fd/*; do readlink "$fd"; done; :'
ENVIRONMENT = "env -0"
USER_NAMESPACE = "unshare --user true"
# With a user namespace of one's own: write to the read-only directory $1 after all.
REMOUNT = 'exec unshare --user --map-root-user --mount sh -c \'mount -o remount,bind,rw "$1"; echo evil > "$1/file"\' sh "$1"'
SHARED_MEMORY = "ipcs -m"

# $1 processes that all live for a moment, of which it says so $2 seconds later.
FORKS = 'i=0; while [ "$i" -lt "$1" ]; do sleep 2 >/dev/null 2>&1 & i=$((i+1)); done; sleep "$2"; echo "made $i"'
HOG = 'dd if=/dev/zero of=/dev/null bs="$1" count=1 2>/dev/null && echo "had it all"'
# $2 processes that hold $1 bytes each, all at the same time: each writes into a pipe from which nobody reads for $3 seconds.
HOGS = """
i=0
while [ "$i" -lt "$2" ]; do
  { dd if=/dev/zero bs="$1" count=1 2>/dev/null | { sleep "$3"; wc -c; }; } &
  i=$((i+1))
done
wait
"""
SPIN = "while :; do :; done"
FILL = 'head -c "$1" /dev/zero > "$2"'
OPEN = 'paste $(yes /dev/null | head -n "$1") > /dev/null'  # paste(1) opens all at the same time

# Connect to $1 port $2, say so, say hello, print what is answered.
_BASH = 'exec 3<>"/dev/tcp/$1/$2" || exit 9; echo connected; printf hello >&3; cat <&3'
_PYTHON = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2); s.settimeout(2)
print("connected", flush=True); s.sendall(b"hello"); print(s.recv(100).decode())
"""
CONNECT = f"""
if command -v bash >/dev/null; then exec timeout 2 bash -c '{_BASH}' bash "$1" "$2"; fi
if command -v python3 >/dev/null; then exec python3 -I -S -c '{_PYTHON}' "$1" "$2"; fi
exit 77
"""
# As above by UDP: only sends.
DATAGRAM = """
if command -v bash >/dev/null; then exec bash -c 'printf hello > "/dev/udp/$1/$2"' bash "$1" "$2"; fi
exit 77
"""
# Connect to a Unix socket; a name that begins with @ is abstract.
UNIX = """
command -v python3 >/dev/null || exit 77
exec python3 -I -S -c '
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1].replace("@", "\\0")); s.sendall(b"hello"); print(s.recv(100).decode())
' "$1"
"""
# Listen on port $1 of every address, say so, and answer $2 to whoever connects.
LISTEN = """
command -v python3 >/dev/null || exit 77
exec python3 -I -S -c '
import socket, sys
s = socket.create_server(("", int(sys.argv[1]))); print("listening", flush=True)
while True:
    c, _ = s.accept(); c.sendall(sys.argv[2].encode()); c.close()
' "$1" "$2"
"""
LACKS = 77  # what a probe ends with where neither of the programs that it needs is there

ALL = frozenset(text for name, text in list(globals().items()) if name.isupper() and not name.startswith("_") and isinstance(text, str))
