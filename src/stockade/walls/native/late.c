/* Mounts for a guest whose kernel runs already (walls/late.py): `late` and `bind` outside, `take` in the guest. */
#include "step.h"

#include <linux/capability.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef OPEN_TREE_CLONE /* C libraries that leave the newer mount calls to the kernel's headers */
#include <linux/mount.h>
#endif

/* Mounts that appear below `dir` from now on appear in the mount namespaces that runsc makes as well (mount_namespaces(7): they are slaves of this one). Whoever
 * makes them learns by the byte on `sock` who we are. */
int late(int argc, char **argv, int wait) {
    if (argc < 3) _exit(EXIT_STEP);
    int sock = (int)number(argv[0]);
    struct note note;
    if (mount(NULL, argv[1], NULL, MS_SHARED, NULL)) fail("share");
    if (write(sock, "", 1) != 1) _exit(EXIT_STEP);
    if (wait && (read(sock, &note, sizeof note) != sizeof note || note.kind != 'B' || close(sock)))
        _exit(EXIT_STEP); /* whoever was to mount has failed, and has said why */
    execv(argv[2], argv + 2);
    fail("exec");
}

/* BLOB: pairs of strings, parents before their children. MODE:SOURCE and the path inside; MODE is "ro" or "rw", SOURCE the descriptor of what is to be mounted, the
 * path of a stage, or nothing for what is there by then and becomes a mount of itself. */
int bind_late(int argc, char **argv) {
    if (argc < 4) _exit(EXIT_STEP);
    int sock = (int)number(argv[0]), blob = (int)number(argv[1]), count = 0, trees[MAX_KEPT];
    char *end = NULL, *text = text_of(blob, &end), name[32];
    if (!text && lseek(blob, 0, SEEK_END)) fail("list of mounts");
    pid_t guest = greeted(sock);
    snprintf(name, sizeof name, "/proc/%d/ns/user", guest);
    int user = open(name, O_RDONLY | O_CLOEXEC);
    snprintf(name, sizeof name, "/proc/%d/ns/mnt", guest);
    int mounts = open(name, O_RDONLY | O_CLOEXEC);
    if (user < 0 || mounts < 0 || setns(user, CLONE_NEWUSER)) fail("join the sandbox's user namespace");
    /* As long as the host's mounts are in view, in a namespace in which we may mount: copies of what is wanted. */
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) fail("mount namespace");
    for (int i = 4; i < argc; i++) {
        if (strncmp(argv[i], "overlay=", 8)) fail(argv[i]);
        mount_overlay(argv[i] + 8);
    }
    for (char *mode = text, *target; mode < end; mode = target + strlen(target) + 1, count++) {
        target = mode + strlen(mode) + 1;
        if (count == MAX_KEPT || target >= end || strlen(mode) < 3) {
            errno = E2BIG;
            fail("list of mounts");
        }
        const char *source = mode + 3;
        trees[count] = !*source ? -1 : *source == '/' ? cloned(AT_FDCWD, source, mode) : cloned(again((int)number(source)), "", mode);
    }
    if (setns(mounts, CLONE_NEWNS)) fail("join the sandbox's mount namespace");
    int below = open(argv[2], O_PATH | O_DIRECTORY | O_CLOEXEC);
    /* The guest's root, in a copy that can be written: the places where its kernel is to mount. */
    struct mount_attr writable = {.attr_clr = MOUNT_ATTR_RDONLY};
    int root = (int)syscall(SYS_open_tree, AT_FDCWD, argv[3], OPEN_TREE_CLONE | AT_RECURSIVE | OPEN_TREE_CLOEXEC);
    if (below < 0 || root < 0 || syscall(SYS_mount_setattr, root, "", AT_EMPTY_PATH, &writable, sizeof writable)) fail("the guest's root");
    count = 0;
    for (char *mode = text, *target; mode < end; mode = target + strlen(target) + 1, count++) {
        target = mode + strlen(mode) + 1;
        int place = place_at(below, target, trees[count]);
        close(place_at(root, target, trees[count] >= 0 ? trees[count] : place));
        put(trees[count] >= 0 ? trees[count] : cloned(place, "", mode), place);
        close(place);
    }
    notes = sock;
    tell('B', 0, count, "", &blob, 1);
    return 0;
}

/* Whether `target` lies in something that was mounted before it, and so in the hands of whoever could write there. */
static int nested(const char *text, const char *until, const char *target) {
    for (const char *mode = text, *other; mode < until; mode = other + strlen(other) + 1) {
        other = mode + strlen(mode) + 1;
        if (!strncmp(target, other, strlen(other)) && target[strlen(other)] == '/') return 1;
    }
    return 0;
}

/* In the guest, whose system calls are dear: put everything that is below `dir` into place, so that its own kernel knows of each mount, hide `dir`, make the root
 * read-only if it is `sealed`, and give up the right to mount. */
void take(int sock, const char *dir, int sealed) {
    struct note note;
    struct iovec part = {&note, sizeof note};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct held[2];
    if (syscall(SYS_capget, &header, held)) fail("capabilities");
    held[0].effective &= ~(1U << CAP_SYS_ADMIN);
    held[0].permitted &= ~(1U << CAP_SYS_ADMIN);
    for (;;) {
        tell('P', 0, 0, "", NULL, 0);
        message.msg_controllen = sizeof control;
        if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) != sizeof note) _exit(EXIT_STEP); /* whoever was to mount has failed, and has said why */
        if (note.kind != 'T') break;
        /* The first command in a guest takes twice as long as those after it: so that it is not somebody's. If there is none such, nothing is lost. */
        static char *words[] = {"true", NULL}, *nothing[] = {NULL};
        pid_t pid = vfork();
        if (pid == 0) _exit(execve("/usr/bin/true", words, nothing));
        if (pid > 0) waitpid(pid, NULL, 0);
    }
    if (note.kind != 'B' || control.header.cmsg_type != SCM_RIGHTS) _exit(EXIT_STEP);
    int blob;
    memcpy(&blob, CMSG_DATA(&control.header), sizeof blob);
    char *end = NULL, *text = note.value ? text_of(blob, &end) : NULL, from[4096 + 64], onto[32];
    if (note.value && !text) fail("list of mounts");
    for (char *mode = text, *target; mode && mode < end; mode = target + strlen(target) + 1) {
        target = mode + strlen(mode) + 1;
        int source = -1, place = -1, inner = nested(text, mode, target);
        if ((size_t)snprintf(from, sizeof from, "%s%s", dir, target) >= sizeof from) fail(target);
        if (inner || mount(from, target, NULL, MS_BIND, NULL)) { /* not by path, or there is no such place yet */
            int below = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC), root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
            if (below < 0 || root < 0) fail("open");
            source = place_at(below, target, -1);
            place = place_at(root, target, source);
            snprintf(from, sizeof from, "/proc/self/fd/%d", source);
            snprintf(onto, sizeof onto, "/proc/self/fd/%d", place);
            if (mount(from, onto, NULL, MS_BIND, NULL)) fail(target);
            close(source), close(place), close(below), close(root);
        }
        /* What can be written is decided outside; in here it is said as well. What is mounted lies where nobody else runs yet. */
        if (!strncmp(mode, "ro:", 3) && mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL)) fail(target);
    }
    /* The guest's root has these mounts below `dir` as well. */
    if (umount2(dir, 0) || mount("none", dir, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4096,mode=0")) fail("hide mounts");
    if (sealed && mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NODEV, NULL)) fail("read-only root");
    if (prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) || syscall(SYS_capset, &header, held)) fail("capabilities");
    close(blob);
    close(sock);
}
