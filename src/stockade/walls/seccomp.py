"""The system calls a sandbox may make, as stacked filters compiled by libseccomp and cached.

An allowlist in the spirit of the OCI runtimes' default profile, with what an agent's tools need and nothing that reaches namespaces, keyrings, modules,
io_uring, bpf, userfaultfd or exotic socket families. A call that is not listed gets ENOSYS, so that libraries fall back to older ones;
what is known and refused gets EPERM. A foreign ABI (32-bit, x32) kills the process (seccomp(2), seccomp_rule_add(3)).
"""

from __future__ import annotations

import os

from stockade.core import places
from stockade.core.errors import CannotEnforce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 4  # of the lists below: part of the cache's key

# Grouped by who needs them.
ALLOWED: dict[str, str] = {
    # mknod makes fifos; devices are refused below
    "files": (
        "access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 "
        "fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync flock fstat fstatfs fsync ftruncate getcwd "
        "getdents getdents64 lchown lseek lstat mkdir mkdirat newfstatat open openat pread64 preadv preadv2 pwrite64 "
        "pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile splice stat statfs "
        "statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes "
        "futimesat vmsplice write writev link linkat mknod mknodat name_to_handle_at cachestat"
    ),
    "extended attributes": (
        "fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr lremovexattr lsetxattr removexattr setxattr"
    ),
    "waiting and events": (
        "epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 poll ppoll pselect6 select "
        "signalfd signalfd4 inotify_add_watch inotify_init inotify_init1 inotify_rm_watch timerfd_create timerfd_gettime "
        "timerfd_settime"
    ),
    "memory": (
        "brk madvise mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall munmap memfd_create mbind "
        "get_mempolicy set_mempolicy membarrier pkey_alloc pkey_free pkey_mprotect process_madvise map_shadow_stack mseal"
    ),
    "processes": (
        "arch_prctl capget capset execve execveat exit exit_group fork vfork getpgid getpgrp getpid getppid getpriority "
        "getrlimit getrusage getsid gettid prctl prlimit64 restart_syscall rseq setpgid setpriority setrlimit setsid "
        "set_robust_list get_robust_list set_tid_address times wait4 waitid getcpu pidfd_open pidfd_send_signal pidfd_getfd "
        "kcmp ioprio_get ioprio_set process_vm_readv process_vm_writev ptrace modify_ldt set_thread_area get_thread_area"
    ),
    "identity": (
        "getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid setgroups setregid setresgid "
        "setresuid setreuid setuid"
    ),
    "threads and locks": (
        "futex futex_waitv futex_wait futex_wake futex_requeue sched_get_priority_max sched_get_priority_min sched_getaffinity "
        "sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam "
        "sched_setscheduler sched_yield"
    ),
    "signals": (
        "kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait "
        "rt_tgsigqueueinfo sigaltstack tgkill tkill"
    ),
    "time": (
        "alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create "
        "timer_delete timer_getoverrun timer_gettime timer_settime"
    ),
    "sockets": (
        "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg "
        "sendto setsockopt shutdown"
    ),
    "System V and POSIX queues": (
        "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop "
        "semtimedop shmat shmctl shmdt shmget"
    ),
    "pipes": "pipe pipe2",
    # the old interface; io_uring is not
    "asynchronous files": "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit",
    "confining further": "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    # like some of the files' calls narrowed by the second filter
    "terminals and devices": "ioctl",
    "the rest": "getrandom sysinfo uname",
}
# Known, wanted by some program, and refused: EPERM says so. Anything else unlisted gets ENOSYS.
REFUSED = (
    "acct add_key bpf chroot delete_module finit_module fsconfig fsmount fsopen fspick init_module io_uring_enter "
    "io_uring_register io_uring_setup kexec_file_load kexec_load keyctl lookup_dcookie mount mount_setattr move_mount "
    "move_pages migrate_pages nfsservctl open_by_handle_at open_tree perf_event_open personality pivot_root quotactl "
    "quotactl_fd reboot request_key setdomainname sethostname setns settimeofday clock_settime clock_adjtime adjtimex swapoff "
    "swapon syslog umount2 unshare userfaultfd uselib ustat sysfs _sysctl vhangup fanotify_init fanotify_mark "
    "lsm_set_self_attr "
)
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET of clone(2)
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: no AF_VSOCK, AF_ALG, AF_PACKET, AF_TIPC ... (address_families(7))
NETLINK_ROUTE = 0  # getifaddrs(3) and getaddrinfo(3) ask it which addresses exist
# Calls that set a file's mode, and which argument it is; openat2(2) hides it in a structure. As systemd.exec(5), RestrictSUIDSGID=: a set-user-ID program in
# a writable mount would lend the user's identity, or root's, to whoever finds it on the host. O_CREAT and O_TMPFILE alone make open(2) look at a mode.
MODES = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mknod": 1, "mknodat": 2}
OPENS = {"open": 1, "openat": 2}
SET_ID = (0o4000, 0o2000)
# Nor device nodes: the kernel wants CAP_MKNOD for any but a character device 0:0, which is a whiteout to overlayfs (mknod(2), the kernel's overlayfs.rst).
MAKES = {"mknod": 1, "mknodat": 2}
DEVICES = (0o020000, 0o060000)
CREATING = (os.O_CREAT, os.O_TMPFILE & ~os.O_DIRECTORY)
# What a kernel in user space never needs of the host's: refused to runsc as well, beside the filters that it sets itself.
NEVER = (
    "add_key bpf delete_module finit_module init_module io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl lookup_dcookie "
    "nfsservctl open_by_handle_at perf_event_open quotactl quotactl_fd reboot request_key settimeofday clock_settime clock_adjtime adjtimex swapoff "
    "swapon syslog userfaultfd uselib acct fanotify_init fanotify_mark"
)
ATTRIBUTES = ALLOWED["extended attributes"]
TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX of ioctl_tty(2)
# What reaches beyond the folder that it is asked of, by its file system, and needs no privilege: BTRFS_IOC_SNAP_CREATE and its second version (to older kernels of the
# whole subvolume that a file of ours lies in, everything beside the workspace included), BTRFS_IOC_SUBVOL_CREATE and its second version; and of fscrypt, which goes by
# the user (the kernel's filesystems/fscrypt.rst), FS_IOC_ADD_ENCRYPTION_KEY, FS_IOC_REMOVE_ENCRYPTION_KEY and FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS.
BEYOND = (0x50009401, 0x50009417, 0x5000940E, 0x50009418, 0xC0506617, 0xC0406618, 0xC0406619)


def filters() -> tuple[int, ...]:
    """Descriptors of the compiled filters of a command, positioned at their start. Compiles them on first use (about 50 ms), then reads the cache.

    Raises CannotEnforce (`seccomp.missing`) without libseccomp.
    """
    return _opened(("calls", "arguments"))


def unpacking_filters() -> tuple[int, ...]:
    """Those of a command that unpacks an image: it sets the modes that the image says, before what is not wanted of them is taken off again, and no attributes."""
    return _opened(("calls", "unpacking"))


def kernel_filters() -> tuple[int, ...]:
    """The same for a kernel of the guest's own, which calls the host's for it: what it must never be made to do."""
    return _opened(("kernel", "arguments"))


def _opened(names: tuple[str, ...]) -> tuple[int, ...]:
    directory = places.private(places.cache("seccomp"))
    paths = {name: f"{directory}/v{VERSION}-{os.uname().machine}-{name}.bpf" for name in names}
    found: list[int] = []
    for name, path in paths.items():
        try:
            found.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except FileNotFoundError:
            _compile(name, path)
            found.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    for fd, path in zip(found, paths.values(), strict=True):
        size = os.fstat(fd).st_size
        if not size or size % 8:  # struct sock_filter is 8 bytes
            raise CannotEnforce(f"{path} is not a seccomp filter", code="seccomp.cache", hint=f"Remove it and try again: rm -r {directory}")
    return tuple(found)


def _compile(name: str, path: str) -> None:
    try:
        import pyseccomp as lib
    except (ImportError, OSError, RuntimeError) as error:
        raise CannotEnforce(
            f"libseccomp cannot be used: {error}",
            code="seccomp.missing",
            hint="Install it (Debian: apt install libseccomp2) and run again.",
        ) from error
    rules = {"calls": _calls, "arguments": _arguments, "kernel": _kernel, "unpacking": _unpacking}[name](lib)
    temporary = f"{path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        rules.export_bpf(file)
    os.rename(temporary, path)


def _new(lib: Any, default: int) -> Any:
    rules = lib.SyscallFilter(default)
    rules.set_attr(lib.Attr.ACT_BADARCH, lib.KILL_PROCESS)
    return rules


def _calls(lib: Any) -> Any:
    rules = _new(lib, lib.ERRNO(38))  # ENOSYS
    rules.set_attr(lib.Attr.CTL_OPTIMIZE, 2)  # a binary tree: the cost of a call does not grow with the list
    for name in REFUSED.split():
        _rule(lib, rules, lib.ERRNO(1), name)
    for group in ALLOWED.values():
        for name in group.split():
            _rule(lib, rules, lib.ALLOW, name)
    _rule(lib, rules, lib.ALLOW, "clone", lib.Arg(0, lib.MASKED_EQ, NEW_NAMESPACES, 0))
    for family in FAMILIES:
        _rule(lib, rules, lib.ALLOW, "socket", lib.Arg(0, lib.EQ, family))
    _rule(lib, rules, lib.ALLOW, "socket", lib.Arg(0, lib.EQ, 16), lib.Arg(2, lib.EQ, NETLINK_ROUTE))
    _rule(lib, rules, lib.ALLOW, "socketpair", lib.Arg(0, lib.EQ, 1))
    return rules


def _arguments(lib: Any) -> Any:
    rules = _new(lib, lib.ALLOW)
    rules.set_attr(lib.Attr.CTL_OPTIMIZE, 2)
    for request in (*TERMINAL_INJECTION, *BEYOND):  # the kernel looks at the low 32 bits only, and so must we
        _rule(lib, rules, lib.ERRNO(1), "ioctl", lib.Arg(1, lib.MASKED_EQ, 0xFFFFFFFF, request))
    for bit in SET_ID:
        for name, place in MODES.items():
            _rule(lib, rules, lib.ERRNO(1), name, lib.Arg(place, lib.MASKED_EQ, bit, bit))
        for name, place in OPENS.items():
            for flag in CREATING:
                creating = lib.Arg(place, lib.MASKED_EQ, flag, flag)
                _rule(lib, rules, lib.ERRNO(1), name, creating, lib.Arg(place + 1, lib.MASKED_EQ, bit, bit))
    for name, place in MAKES.items():
        for kind in DEVICES:
            _rule(lib, rules, lib.ERRNO(1), name, lib.Arg(place, lib.MASKED_EQ, 0o170000, kind))
    _rule(lib, rules, lib.ERRNO(38), "openat2")  # ENOSYS: callers fall back to openat(2)
    return rules


def _kernel(lib: Any) -> Any:
    rules = _new(lib, lib.ALLOW)
    rules.set_attr(lib.Attr.CTL_OPTIMIZE, 2)
    for name in NEVER.split():
        _rule(lib, rules, lib.ERRNO(1), name)
    for name in ATTRIBUTES.split():  # what it shows of a file on the host has none: for a symbolic link gVisor would answer with EBADF
        _rule(lib, rules, lib.ERRNO(95), name)  # EOPNOTSUPP
    return rules


def _unpacking(lib: Any) -> Any:
    rules = _new(lib, lib.ALLOW)
    for name in ATTRIBUTES.split():  # capabilities of files among them
        _rule(lib, rules, lib.ERRNO(95), name)  # EOPNOTSUPP, which programs take for a file system without any
    return rules


def _rule(lib: Any, rules: Any, action: int, name: str, *arguments: object) -> None:
    try:
        rules.add_rule(action, name, *arguments)
    except OSError:
        # A call that this libseccomp or this architecture does not know gets the default, ENOSYS. Anything else is an error.
        if lib.resolve_syscall(lib.system_arch(), name) >= 0:
            raise
