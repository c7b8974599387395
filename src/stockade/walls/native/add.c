/* A folder of the host's for a sandbox that runs already, after somebody has approved it. */
#include "step.h"

#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

/* Mounts what the descriptor TREE pins, read-only, at TARGET in the mount namespace of the process PID, where it is a folder already. The namespaces are joined as in bind_late; the user namespace
 * is the one that owns the mounts, not the one that the process has been put into since (ioctl_ns(2)). */
int add(int argc, char **argv) {
    char name[32];
    if (argc != 3) _exit(EXIT_STEP);
    snprintf(name, sizeof name, "/proc/%ld/ns/mnt", number(argv[0]));
    int mounts = open(name, O_RDONLY | O_CLOEXEC), owner = mounts < 0 ? -1 : ioctl(mounts, NS_GET_USERNS);
    if (owner < 0 || setns(owner, CLONE_NEWUSER)) fail("join the sandbox's user namespace");
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) fail("mount namespace");
    int tree = cloned(again((int)number(argv[1])), "", "ro:");
    if (setns(mounts, CLONE_NEWNS)) fail("join the sandbox's mount namespace");
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) fail("the sandbox's root");
    put(tree, place_at(root, argv[2], -1));
    return 0;
}
