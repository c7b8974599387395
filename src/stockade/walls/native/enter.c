/* A process from outside, for a moment, held by what holds the sandbox. */
#include "step.h"

#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* A seccomp program, as `seccomp.py` has written it (struct sock_filter of seccomp(2)). */
static void filter(int file) {
    static struct sock_filter code[BPF_MAXINSNS];
    ssize_t size = pread(file, code, sizeof code, 0);
    const struct sock_fprog program = {(unsigned short)(size / (ssize_t)sizeof *code), code};
    if (size <= 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) fail("seccomp");
}

/* Held by the same namespaces and filters as what runs there already; what it writes in DIR is nobody else's to read. Ends as ARGV does. */
int enter(int argc, char **argv) {
    int i = 2, status;
    static char *empty[] = {NULL};
    if (argc < 4) _exit(EXIT_STEP);
    int process = (int)syscall(SYS_pidfd_open, number(argv[0]), 0), directory = (int)number(argv[1]);
    if (process < 0 || close_range(3, LAST, CLOSE_RANGE_CLOEXEC)) fail("the sandbox's process");
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS) fail("session keyring");
    if (setns(process, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)) fail("join the sandbox");
    if (fchdir(directory)) fail("directory");
    umask(077);
    /* Its own group, whose number is that of its leader: by this whoever holds us finds what we leave, should we be killed. No member of it has a terminal. */
    if (setsid() < 0 && errno != EPERM) fail("session");
    pid_t pid = fork(); /* children are in the PID namespace, and end with it */
    if (pid < 0) fail("fork");
    if (pid == 0) {
        for (; i < argc && strcmp(argv[i], "--"); i++) filter((int)number(argv[i]));
        if (i + 1 < argc) execve(argv[i + 1], argv + i + 1, empty);
        fail("exec");
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) fail("wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_STEP;
}
