/* The last steps before bubblewrap: join a door, mount overlays, set limits, drop what must not be inherited; and what holds paths in its sandbox. */
#include "step.h"

#include <linux/close_range.h>
#include <linux/keyctl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* Make each path of the blob a mount of itself: "rw:PATH" can then be neither renamed nor removed, in "ro:PATH" nothing can be written either.
 * The kernel's own words: open_tree(2), mount_setattr(2), move_mount(2), openat2(2). */
void hold(int blob) {
    char *end = NULL, *path = text_of(blob, &end);
    if (!path) fail("list of paths to hold");
    for (; path < end; path += strlen(path) + 1) {
        struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
        int place = (int)syscall(SYS_openat2, AT_FDCWD, path + 3, &how, sizeof how);
        if (place < 0) fail(path + 3);
        int tree = cloned(place, "", path);
        put(tree, place);
        close(place);
    }
}

/* A process that keeps our privileges over the sandbox's user namespace, waits until the sandbox's init says on `sock` that its mounts stand, holds
 * the paths of `blob` in there, answers, and ends. bubblewrap could make these binds itself, but reads all of mountinfo(5) for each: 0.3 ms
 * instead of 10 us. If anything fails the answer is missing, and the init does not go on. (bubblewrap ignores children that it has not made.) */
static void holder(int blob, int sock, const int *keep, int kept) {
    pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid > 0) return;
    for (int i = 0; i < kept; i++) close(keep[i]); /* the init's end of `sock` is among them: if it never answers, we see the end of file */
    char name[32];
    snprintf(name, sizeof name, "/proc/%d/ns/mnt", greeted(sock));
    int mounts = open(name, O_RDONLY | O_CLOEXEC);
    if (mounts < 0 || setns(mounts, CLONE_NEWNS)) fail("join the sandbox's mount namespace");
    hold(blob);
    _exit(write(sock, "", 1) == 1 ? 0 : EXIT_STEP);
}

int launch(int argc, char **argv) {
    int keep[MAX_KEPT], kept = 0, i = 0, mounts = 0, blob = -1, waiting = -1;
    if (close_range(3, LAST, CLOSE_RANGE_CLOEXEC)) fail("close_range");
    for (; i < argc && strcmp(argv[i], "--"); i++) {
        char *value = strchr(argv[i], '=');
        if (!value) fail("option");
        *value++ = 0;
        if (!strcmp(argv[i], "user")) {
            if (setns((int)number(value), CLONE_NEWUSER)) fail("join user namespace");
        } else if (!strcmp(argv[i], "net")) {
            if (setns((int)number(value), CLONE_NEWNET)) fail("join network namespace");
        } else if (!strcmp(argv[i], "overlay")) {
            if (!mounts++ && (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))) fail("mount namespace");
            mount_overlay(value);
        } else if (!strcmp(argv[i], "hold")) { /* descriptors: a blob of paths, a socket to the init that passes credentials */
            if (sscanf(value, "%d:%d", &blob, &waiting) != 2) fail("hold");
        } else if (!strcmp(argv[i], "rlimit")) {
            unsigned resource;
            unsigned long long limit;
            if (sscanf(value, "%u:%llu", &resource, &limit) != 2) fail("rlimit");
            struct rlimit both = {limit, limit}, now;
            if (getrlimit((int)resource, &now)) fail("getrlimit");
            if (now.rlim_max < both.rlim_max) both.rlim_max = both.rlim_cur = now.rlim_max; /* never above what we hold ourselves */
            if (setrlimit((int)resource, &both)) fail("setrlimit");
        } else if (!strcmp(argv[i], "cgroup")) { /* a descriptor of a cgroup.procs (v2) or tasks (v1) file */
            if (write((int)number(value), "0", 1) != 1) fail("join cgroup");
        } else if (!strcmp(argv[i], "keep") && kept < MAX_KEPT) {
            keep[kept++] = (int)number(value);
        } else {
            errno = EINVAL;
            fail(argv[i]);
        }
    }
    if (i + 1 >= argc) {
        errno = EINVAL;
        fail("no command");
    }
    /* A session keyring of its own: the caller's is inherited by default and holds its secrets (session-keyring(7)). */
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS) fail("session keyring");
    if (setsid() < 0) fail("setsid"); /* no controlling terminal: TIOCSTI and /dev/tty cannot reach the user's */
    if (blob >= 0) holder(blob, waiting, keep, kept);
    for (int k = 0; k < kept; k++)
        if (fcntl(keep[k], F_SETFD, 0)) fail("keep descriptor");
    static char *empty[] = {NULL};
    execve(argv[i + 1], argv + i + 1, empty);
    fail("exec bubblewrap");
}
