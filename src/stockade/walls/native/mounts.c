/* Mounts as they were judged: opened anew where they are needed, cloned, and put into place without following a link. */
#include "step.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef OPEN_TREE_CLONE /* C libraries that leave the newer mount calls to the kernel's headers */
#include <linux/mount.h>
#endif

/* What the host judged and pinned by `pinned`, opened anew in this mount namespace: the kernel wants layers and mounts from the caller's own. */
int again(int pinned) {
    char link[32], path[4096];
    struct stat before, now;
    snprintf(link, sizeof link, "/proc/self/fd/%d", pinned);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) fail("readlink");
    path[size] = 0;
    int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(pinned, &before) || fstat(fd, &now)) fail(path);
    if (before.st_dev != now.st_dev || before.st_ino != now.st_ino) {
        errno = ESTALE;
        fail(path);
    }
    return fd;
}

void mount_overlay(char *spec) { /* LOWER:UPPER:WORK:TARGET, the first three are descriptors */
    int lower, upper, work, used = 0;
    if (sscanf(spec, "%d:%d:%d:%n", &lower, &upper, &work, &used) != 3 || !used) {
        errno = EINVAL;
        fail("overlay");
    }
    char data[192]; /* descriptors, so that no path has to be quoted and none can be swapped */
    snprintf(data, sizeof data, "userxattr,lowerdir=/proc/self/fd/%d,upperdir=/proc/self/fd/%d,workdir=/proc/self/fd/%d", again(lower),
             again(upper), again(work));
    if (mount("stockade", spec + used, "overlay", MS_NODEV | MS_NOSUID, data)) fail("overlay mount");
}

/* A copy of what is mounted at a path, not attached anywhere yet: `mode` "ro:..." = read-only, all of it, "rw:..." = as it is. */
int cloned(int at, const char *path, const char *mode) {
    struct mount_attr changes = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    int tree = (int)syscall(SYS_open_tree, at, path, AT_EMPTY_PATH | AT_RECURSIVE | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0) fail("open_tree");
    if (!strncmp(mode, "ro:", 3)) {
        changes.attr_set |= MOUNT_ATTR_RDONLY;
    } else if (strncmp(mode, "rw:", 3)) {
        errno = EINVAL;
        fail(mode);
    }
    if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &changes, sizeof changes)) fail("mount_setattr");
    return tree;
}

/* Attach it. */
void put(int tree, int place) {
    if (syscall(SYS_move_mount, tree, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)) fail("move_mount");
    close(tree);
}

/* The place `path` below `root`: no component may be a symbolic link, for what is below a mount is in the hands of whoever could write there before. What
 * is missing is made: directories, or at the end what `like` is (a descriptor; -1: nothing is made). */
int place_at(int root, const char *path, int like) {
    struct stat kind = {.st_mode = S_IFDIR};
    char rest[4096], *save = NULL;
    int at = fcntl(root, F_DUPFD_CLOEXEC, 3);
    if (like >= 0 && fstat(like, &kind)) fail(path);
    if (at < 0 || (size_t)snprintf(rest, sizeof rest, "%s", path) >= sizeof rest) fail(path);
    for (char *name = strtok_r(rest, "/", &save), *more; name; name = more) {
        more = strtok_r(NULL, "/", &save);
        int next = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), made;
        if (next < 0 && errno == ENOENT && like >= 0) {
            if (more || S_ISDIR(kind.st_mode)) {
                if (mkdirat(at, name, 0755)) fail(path);
            } else if ((made = openat(at, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644)) < 0 || close(made)) {
                fail(path);
            }
            next = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        }
        struct stat found;
        if (next < 0 || fstat(next, &found)) fail(path);
        if (S_ISLNK(found.st_mode)) {
            errno = ELOOP;
            fail(path);
        }
        close(at);
        at = next;
    }
    return at;
}
