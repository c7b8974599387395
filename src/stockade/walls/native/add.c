/* A folder of the host's for a sandbox that runs already, after somebody has approved it. */
#include "step.h"

#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

/* Join the user namespace that owns the mounts of a sandbox's process, not the one that the process has been put into since (ioctl_ns(2)); gives its mount namespace. */
static int owner_of(const char *process) {
    char name[32];
    snprintf(name, sizeof name, "/proc/%ld/ns/mnt", number(process));
    int mounts = open(name, O_RDONLY | O_CLOEXEC), owner = mounts < 0 ? -1 : ioctl(mounts, NS_GET_USERNS);
    if (owner < 0 || setns(owner, CLONE_NEWUSER)) fail("join the sandbox's user namespace");
    return mounts;
}

/* Mounts what the descriptor TREE pins, read-only, at TARGET in the mount namespace of the process PID, where it is a folder already. The namespaces are joined as in bind_late. */
int add(int argc, char **argv) {
    if (argc != 3) _exit(EXIT_STEP);
    int mounts = owner_of(argv[0]);
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) fail("mount namespace");
    int tree = cloned(again((int)number(argv[1])), "", "ro:");
    if (setns(mounts, CLONE_NEWNS)) fail("join the sandbox's mount namespace");
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) fail("the sandbox's root");
    put(tree, place_at(root, argv[2], -1));
    return 0;
}

/* Holds the paths of BLOB again, in the mount namespace of the process PID (walls/workspace/again.py). */
int hold_again(int argc, char **argv) {
    if (argc != 2) _exit(EXIT_STEP);
    int mounts = owner_of(argv[0]), blob = (int)number(argv[1]);
    if (setns(mounts, CLONE_NEWNS)) fail("join the sandbox's mount namespace");
    hold(blob);
    return 0;
}
