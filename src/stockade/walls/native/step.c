/* The steps of a sandbox's life that no stock tool takes, as one static program of plain system calls:
 *
 *   step door SOCK [wire] PORT...       make a user and network namespace without any route, send its listening sockets over SOCK
 *   step launch OPTION... -- ARGV...    join a door, mount overlays, set limits, drop what must not be inherited, exec ARGV (bubblewrap)
 *   step late SOCK DIR ARGV...          between bubblewrap and a kernel of the guest's own: let mounts below DIR reach it later, exec ARGV (runsc)
 *   step mounted SOCK DIR ARGV...       the same where all of them have to be there before ARGV
 *   step bind SOCK BLOB DIR ROOT [overlay=...]  mount what BLOB lists below DIR of a sandbox that went through `late`, and tell its guest
 *   step inside SOCK ABI HOLD RULE...   in the sandbox, as its init: apply Landlock, then serve exec requests that arrive on SOCK
 *   step inside SOCK 0 -1 guest LATE DIR  the same where the kernel is the guest's own: first put what arrives below DIR into place
 *   step enter PID DIR FILTER... -- ARGV...   from outside, into the namespaces of the sandbox's process PID, with the host's directory DIR to work in
 *
 * INVARIANT: every failure ends the program before the next step; nothing is ever skipped or retried with less.
 * INVARIANT: `inside` runs with all of the sandbox's restrictions on, and what it says is not trusted outside.
 * The host's side of SOCK is walls/native/__init__.py; the message layouts must match it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <linux/veth.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef OPEN_TREE_CLONE /* C libraries that leave the newer mount calls to the kernel's headers */
#include <linux/mount.h>
#endif

enum { MAX_FDS = 64, MAX_KEPT = 512, MAX_BLOB = 8 << 20, EXIT_STEP = 125 };
#define LAST 0x7fffffffU /* for close_range(2); gVisor takes ~0U for -1 */

/* One message from us to the host. Fixed size, host byte order. kind: D door made, P prepared (it waits for its mounts), R ready, S started, F exec failed,
 * Q ended, E set-up failed; and to a guest: T try a first command, B the mounts are made. */
struct note {
    uint32_t kind, id;
    int32_t value;
    char text[52];
};
_Static_assert(sizeof(struct note) == 64, "the host unpacks 64 bytes");

/* One request from the host. kind: X exec (descriptors: blob, then 0, 1, 2, 3, ...; value: which of 0, 1, 2 are not sent but /dev/null, as bits), H say
 * again that the sandbox stands, K signal (value) to the process group of id, W window size of its
 * terminal (value: rows << 16 | columns). */
struct request {
    uint32_t kind, id;
    int32_t value;
    uint32_t flags; /* X: 1 = give it a terminal (descriptors 0, 1, 2 are not sent); 2 = the terminal's other end stays here, joined to descriptor 0 */
};

static int notes = -1; /* where failures are reported; -1: standard error */

static void tell(uint32_t kind, uint32_t id, int32_t value, const char *text, const int *fds, int count) {
    struct note note = {.kind = kind, .id = id, .value = value};
    snprintf(note.text, sizeof note.text, "%s", text);
    struct iovec part = {&note, sizeof note};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
        memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * (size_t)count);
    }
    if (sendmsg(notes, &message, MSG_NOSIGNAL) < 0) _exit(EXIT_STEP); /* nobody is listening any more */
}

static void __attribute__((noreturn)) fail(const char *what) {
    int error = errno;
    if (notes >= 0)
        tell('E', 0, error, what, NULL, 0);
    else
        dprintf(2, "stockade: %s: %s\n", what, strerror(error));
    _exit(EXIT_STEP);
}

static long number(const char *text) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end) {
        errno = EINVAL;
        fail("number");
    }
    return value;
}

/* ---- door ------------------------------------------------------------------------------------------------------------------- */

static void write_file(const char *path, const char *format, ...) {
    char text[64];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, (size_t)size) != size || close(fd)) fail(path);
}

static void netlink_do(int netlink, struct nlmsghdr *ask, const char *what) {
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        char rest[512];
    } answer;
    if (send(netlink, ask, ask->nlmsg_len, 0) != (ssize_t)ask->nlmsg_len) fail(what);
    ssize_t size = recv(netlink, &answer, sizeof answer, 0);
    if (size < (ssize_t)(sizeof answer.header + sizeof answer.error.error) || answer.header.nlmsg_type != NLMSG_ERROR) errno = EPROTO;
    else errno = -answer.error.error;
    if (errno) fail(what);
}

/* Add the route `local 0.0.0.0/0 dev lo` (or ::/0): every address becomes our own ("AnyIP", rtnetlink(7)). */
static void any_ip(int netlink, unsigned char family) {
    struct {
        struct nlmsghdr header;
        struct rtmsg route;
        struct rtattr attribute;
        uint32_t device;
    } ask = {
        .header = {.nlmsg_len = sizeof ask, .nlmsg_type = RTM_NEWROUTE, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, .nlmsg_seq = 1},
        .route = {.rtm_family = family, .rtm_table = RT_TABLE_LOCAL, .rtm_protocol = RTPROT_BOOT,
                  .rtm_scope = family == AF_INET ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE, .rtm_type = RTN_LOCAL},
        .attribute = {.rta_len = sizeof(struct rtattr) + sizeof(uint32_t), .rta_type = RTA_OIF},
        .device = 1, /* lo is the first interface of every network namespace */
    };
    netlink_do(netlink, &ask.header, "route");
}

/* ---- the wire: for a guest with a network stack of its own, which cannot sit in the door's namespace ---- */

#define DOOR_ADDRESS 0xC0000001U  /* 192.0.0.1, and the guest's 192.0.0.2: of a range that is nobody's on the Internet (RFC 7335) */
#define GUEST_ADDRESS 0xC0000002U
#define WIRE_MASK 0xFFFFFFF8U

struct link { /* an RTM_NEWLINK request with room for its attributes (rtnetlink(7)) */
    struct nlmsghdr header;
    struct ifinfomsg info;
    char attributes[256];
};

static struct rtattr *attribute(struct link *link, unsigned short type, const void *data, size_t size) {
    struct rtattr *made = (struct rtattr *)((char *)link + NLMSG_ALIGN(link->header.nlmsg_len));
    made->rta_type = type;
    made->rta_len = (unsigned short)RTA_LENGTH(size);
    if (size) memcpy(RTA_DATA(made), data, size);
    link->header.nlmsg_len = NLMSG_ALIGN(link->header.nlmsg_len) + (uint32_t)RTA_ALIGN(made->rta_len);
    return made;
}

static void end_of(struct link *link, struct rtattr *nest) { nest->rta_len = (unsigned short)((char *)link + link->header.nlmsg_len - (char *)nest); }

static struct sockaddr inet(uint32_t address) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(address)};
    struct sockaddr plain;
    memcpy(&plain, &four, sizeof plain);
    return plain;
}

static void up(int sock, const char *name, uint32_t address) {
    struct ifreq ask = {0};
    snprintf(ask.ifr_name, sizeof ask.ifr_name, "%s", name);
    if (address) {
        ask.ifr_addr = inet(address);
        if (ioctl(sock, SIOCSIFADDR, &ask)) fail("address");
        ask.ifr_netmask = inet(WIRE_MASK);
        if (ioctl(sock, SIOCSIFNETMASK, &ask)) fail("netmask");
    }
    ask.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(sock, SIOCSIFFLAGS, &ask)) fail("interface up");
}

/* Make a second namespace, and a veth(4) pair from its `eth0` to the door, which is its only way. Gives the new namespace's descriptor. */
static int wire(int door, int plain) {
    if (unshare(CLONE_NEWNET)) fail("unshare the guest's network namespace");
    int guest = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), inner = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (guest < 0 || inner < 0 || netlink < 0) fail("guest's sockets");
    struct link link = {.header = {.nlmsg_len = NLMSG_LENGTH(sizeof link.info),
                                   .nlmsg_type = RTM_NEWLINK,
                                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
                                   .nlmsg_seq = 1}};
    const struct ifinfomsg other = {0};
    attribute(&link, IFLA_IFNAME, "eth0", sizeof "eth0");
    struct rtattr *info = attribute(&link, IFLA_LINKINFO, NULL, 0);
    attribute(&link, IFLA_INFO_KIND, "veth", sizeof "veth");
    struct rtattr *data = attribute(&link, IFLA_INFO_DATA, NULL, 0), *peer = attribute(&link, VETH_INFO_PEER, &other, sizeof other);
    attribute(&link, IFLA_IFNAME, "guest", sizeof "guest");
    attribute(&link, IFLA_NET_NS_FD, &door, sizeof door);
    end_of(&link, peer);
    end_of(&link, data);
    end_of(&link, info);
    netlink_do(netlink, &link.header, "veth");
    close(netlink);
    up(plain, "guest", DOOR_ADDRESS);
    up(inner, "lo", 0);
    up(inner, "eth0", GUEST_ADDRESS);
    struct rtentry route = {.rt_dst = inet(0), .rt_genmask = inet(0), .rt_gateway = inet(DOOR_ADDRESS), .rt_flags = RTF_UP | RTF_GATEWAY};
    if (ioctl(inner, SIOCADDRT, &route)) fail("guest's route");
    close(inner);
    return guest;
}

static int listener(int family, int type, uint16_t port, uint32_t address) {
    int fd = socket(family, type | SOCK_CLOEXEC, 0), off = 0, on = 1;
    if (fd < 0) fail("socket");
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_ANY_INIT};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off)) fail("IPV6_V6ONLY");
    if (family == AF_INET6 ? bind(fd, (struct sockaddr *)&six, sizeof six) : bind(fd, (struct sockaddr *)&four, sizeof four)) fail("bind");
    if (type == SOCK_STREAM && listen(fd, 512)) fail("listen");
    return fd;
}

static int door(int argc, char **argv) {
    if (argc < 1) _exit(EXIT_STEP);
    notes = (int)number(argv[0]);
    int wired = argc > 1 && !strcmp(argv[1], "wire");
    uid_t uid = geteuid();
    gid_t gid = getegid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET)) fail("unshare user and network namespace");
    write_file("/proc/self/setgroups", "deny"); /* user_namespaces(7): needed before an unprivileged gid_map */
    write_file("/proc/self/uid_map", "%u %u 1", wired ? 0 : uid, uid); /* a kernel of the guest's own wants to be root where it runs */
    write_file("/proc/self/gid_map", "%u %u 1", wired ? 0 : gid, gid);

    int plain = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING};
    if (plain < 0 || ioctl(plain, SIOCSIFFLAGS, &lo)) fail("loopback up");
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (netlink < 0) fail("netlink");
    any_ip(netlink, AF_INET);
    int probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int family = probe >= 0 ? AF_INET6 : AF_INET; /* a kernel without IPv6 has no IPv6 inside either */
    if (family == AF_INET6) {
        close(probe);
        any_ip(netlink, AF_INET6);
    }
    int fds[MAX_FDS], count = 0;
    for (int i = 1 + wired; i < argc && count < MAX_FDS - 4; i++)
        fds[count++] = listener(family, SOCK_STREAM, (uint16_t)number(argv[i]), INADDR_ANY);
    /* DNS over UDP answers on one address only: a reply from a wildcard socket could leave with another source address than was asked. */
    fds[count++] = listener(AF_INET, SOCK_DGRAM, 53, wired ? DOOR_ADDRESS : INADDR_LOOPBACK);
    int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (here < 0) fail("network namespace");
    fds[count++] = wired ? wire(here, plain) : here;
    if ((fds[count++] = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC)) < 0) fail("user namespace");
    if (wired) fds[count++] = here; /* so that the wire's end answers, with refusals, when the listeners are closed */
    tell('D', 0, count, "", fds, count);
    return 0;
}

/* ---- launch ----------------------------------------------------------------------------------------------------------------- */

/* What the host judged and pinned by `pinned`, opened anew in this mount namespace: the kernel wants layers and mounts from the caller's own. */
static int again(int pinned) {
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

static void mount_overlay(char *spec) { /* LOWER:UPPER:WORK:TARGET, the first three are descriptors */
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

/* The strings of a blob, each ended by a NUL; leaves the program for anything else. */
static char *text_of(int blob, char **end) {
    off_t size = lseek(blob, 0, SEEK_END);
    char *text = size > 0 && size <= MAX_BLOB ? malloc((size_t)size) : NULL;
    if (!text || pread(blob, text, (size_t)size, 0) != size || text[size - 1]) return NULL;
    *end = text + size;
    return text;
}

/* A copy of what is mounted at a path, not attached anywhere yet: `mode` "ro:..." = read-only, all of it, "rw:..." = as it is. */
static int cloned(int at, const char *path, const char *mode) {
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
static void put(int tree, int place) {
    if (syscall(SYS_move_mount, tree, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)) fail("move_mount");
    close(tree);
}

/* Make each path of the blob a mount of itself: "rw:PATH" can then be neither renamed nor removed, in "ro:PATH" nothing can be written either.
 * The kernel's own words: open_tree(2), mount_setattr(2), move_mount(2), openat2(2). */
static void hold(int blob) {
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

/* Wait for the byte that a sandbox's first process sends once its mounts stand; who that is, as this PID namespace numbers it. */
static pid_t greeted(int sock) {
    char byte;
    struct iovec part = {&byte, 1};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(struct ucred))];
    } control;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct ucred sender;
    if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) != 1 || message.msg_controllen < CMSG_LEN(sizeof sender) ||
        control.header.cmsg_type != SCM_CREDENTIALS)
        _exit(EXIT_STEP); /* it never got that far, and has said why */
    memcpy(&sender, CMSG_DATA(&control.header), sizeof sender);
    return sender.pid;
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

/* The other side: say to the holder that the mounts stand, and go on once it has answered. */
static void await(int holding) {
    char byte;
    if (write(holding, "", 1) == 1 && read(holding, &byte, 1) == 1) return;
    errno = ECANCELED;
    fail("hold paths in place");
}

static int launch(int argc, char **argv) {
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

/* ---- late: mounts for a guest whose kernel runs already ---------------------------------------------------------------------------- */

/* Mounts that appear below `dir` from now on appear in the mount namespaces that runsc makes as well (mount_namespaces(7): they are slaves of this one). Whoever
 * makes them learns by the byte on `sock` who we are. */
static int late(int argc, char **argv, int wait) {
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

/* The place `path` below `root`: no component may be a symbolic link, for what is below a mount is in the hands of whoever could write there before. What
 * is missing is made: directories, or at the end what `like` is (a descriptor; -1: nothing is made). */
static int place_at(int root, const char *path, int like) {
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

/* BLOB: pairs of strings, parents before their children. MODE:SOURCE and the path inside; MODE is "ro" or "rw", SOURCE the descriptor of what is to be mounted, the
 * path of a stage, or nothing for what is there by then and becomes a mount of itself. */
static int bind_late(int argc, char **argv) {
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

/* In the guest, whose system calls are dear: put everything that is below `dir` into place, so that its own kernel knows of each mount, hide `dir`, and give up
 * the right to mount. */
static void take(int sock, const char *dir) {
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
    if (prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) || syscall(SYS_capset, &header, held)) fail("capabilities");
    close(blob);
    close(sock);
}

/* ---- inside ----------------------------------------------------------------------------------------------------------------- */

#define READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_EXECUTE)
#define FILE_ONLY (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_FILE | TRUNCATE | IOCTL_DEV)
/* Rights that came after the first ABI; Debian 12's headers know only some (Documentation/userspace-api/landlock.rst). */
#define REFER (1ULL << 13)
#define TRUNCATE (1ULL << 14)
#define IOCTL_DEV (1ULL << 15)
#define ALL_OF_ABI_1 ((1ULL << 13) - 1)

struct ruleset { /* struct landlock_ruleset_attr as of ABI 6 */
    uint64_t fs, net, scoped;
};

static int landlock_abi(void) { return (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION); }

static void landlock(int abi, int count, char **rules) {
    uint64_t all = ALL_OF_ABI_1;
    if (abi >= 2) all |= REFER;
    if (abi >= 3) all |= TRUNCATE;
    if (abi >= 5) all |= IOCTL_DEV;
    struct ruleset attributes = {.fs = all, .scoped = abi >= 6 ? 3 : 0}; /* scoped: abstract Unix sockets, signals */
    size_t size = abi >= 6 ? sizeof attributes : abi >= 4 ? 16 : 8;
    int ruleset = (int)syscall(SYS_landlock_create_ruleset, &attributes, size, 0);
    if (ruleset < 0) fail("landlock_create_ruleset");
    for (int i = 0; i < count; i++) {
        uint64_t access = all;
        char *path = strchr(rules[i], ':');
        if (!path) {
            errno = EINVAL;
            fail("landlock rule");
        }
        if (!strncmp(rules[i], "ro:", 3))
            access = READ;
        else if (strncmp(rules[i], "rw:", 3)) {
            errno = EINVAL;
            fail("landlock mode");
        }
        struct landlock_path_beneath_attr beneath = {.allowed_access = access, .parent_fd = open(path + 1, O_PATH | O_CLOEXEC)};
        struct stat found;
        if (beneath.parent_fd < 0 || fstat(beneath.parent_fd, &found)) fail(path + 1);
        if (!S_ISDIR(found.st_mode)) beneath.allowed_access &= FILE_ONLY & all;
        if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0)) fail("landlock_add_rule");
        close(beneath.parent_fd);
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) fail("no_new_privs");
    if (syscall(SYS_landlock_restrict_self, ruleset, 0)) fail("landlock_restrict_self");
    close(ruleset);
}

/* For a guest's own kernel: no user namespaces there either, in which any user is a root with every capability and reaches what the guest's root was not
 * given. (runsc's own reading of such rules in the OCI configuration knows no ENOSYS, on which the C library falls back from clone3(2) to clone(2).) */
static void guest_filter(void) {
#if defined(__x86_64__)
    const uint32_t machine = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
    const uint32_t machine = AUDIT_ARCH_AARCH64;
#endif
    const struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, machine, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 6, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setns, 6, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_unshare, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])), /* both machines have the low half first */
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_NEWUSER, 2, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    };
    const struct sock_fprog program = {sizeof code / sizeof *code, (struct sock_filter *)code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) fail("seccomp");
}

enum { MAX_CHILDREN = 1024 };
static struct {
    pid_t pid;
    uint32_t id;
    int terminal; /* the master of its terminal, if that stays here; else -1 */
} children[MAX_CHILDREN];

/* The blob: NUL-terminated strings cwd, argc, argv..., envc, environment... */
static char *next(char **at, char *end) {
    char *start = *at, *stop = start < end ? memchr(start, 0, (size_t)(end - start)) : NULL;
    if (!stop) _exit(EXIT_STEP);
    *at = stop + 1;
    return start;
}

static char **list(char **at, char *end) {
    long count = number(next(at, end));
    if (count < 0 || count > MAX_BLOB) _exit(EXIT_STEP);
    char **items = calloc((size_t)count + 1, sizeof *items);
    if (!items) _exit(EXIT_STEP);
    for (long i = 0; i < count; i++) items[i] = next(at, end);
    return items;
}

/* What a command is made of. */
struct command {
    char *cwd, **arguments, **environment;
    const int *fds;
    int count, terminal;
};

/* Become it; gives what went wrong as in errno(3), negative when it was the working directory. In memory that is shared with our parent: system calls only. */
static int become(const struct command *command) {
    sigset_t none;
    sigemptyset(&none);
    setsid();
    if (command->terminal >= 0) {
        if (ioctl(command->terminal, TIOCSCTTY, 0)) return errno;
        for (int i = 0; i < 3; i++)
            if (dup2(command->terminal, i) < 0) return errno;
    }
    /* First out of the way, then into place: a descriptor to be moved may sit where another belongs. Low numbers: RLIMIT_NOFILE may be small. */
    int first = command->terminal >= 0 ? 3 : 0, moved[MAX_FDS], count = command->count;
    for (int i = 0; i < count; i++)
        if ((moved[i] = fcntl(command->fds[i], F_DUPFD_CLOEXEC, first + count)) < 0) return errno;
    for (int i = 0; i < count; i++)
        if (dup2(moved[i], first + i) < 0) return errno;
    /* Everything else is ours and closes at exec: the control socket must never be the command's. */
    if (close_range((unsigned)(first + count), LAST, CLOSE_RANGE_CLOEXEC)) return errno;
    if (chdir(command->cwd)) return -errno;
    sigprocmask(SIG_SETMASK, &none, NULL);
    environ = command->environment; /* also where PATH is looked up */
    execvp(command->arguments[0], command->arguments);
    return errno;
}

/* Start a command; gives its number, -1 and errno when there can be no process, and 0 and `error` when it could not be executed. vfork(2): a process whose memory
 * is copied first costs a guest's kernel as much again as the command itself. */
static pid_t spawn(const struct command *command, volatile int *error) {
    *error = 0;
    pid_t pid = vfork();
    if (pid == 0) {
        *error = become(command);
        _exit(EXIT_STEP);
    }
    static char *nothing[] = {NULL};
    environ = nothing;
    if (pid < 0 || !*error) return pid;
    waitpid(pid, NULL, 0);
    return 0;
}

/* Copy until either end is closed, in a process of its own: one for each direction, since each may wait for the other. */
static void copy(int from, int to) {
    if (fork() != 0) return;
    close(notes);
    char data[1 << 16];
    for (ssize_t size; (size = read(from, data, sizeof data)) > 0 || (size < 0 && errno == EINTR);)
        for (ssize_t done = 0, more; done < size; done += more)
            if ((more = write(to, data + done, (size_t)(size - done))) < 0) _exit(0);
    shutdown(to, SHUT_WR); /* a terminal has no such thing, and needs none */
    _exit(0);
}

static void resize(uint32_t id, int32_t value) {
    struct winsize size = {.ws_row = (unsigned short)(value >> 16), .ws_col = (unsigned short)value};
    for (int i = 0; i < MAX_CHILDREN; i++)
        if (children[i].pid && children[i].id == id && children[i].terminal >= 0) ioctl(children[i].terminal, TIOCSWINSZ, &size);
}

/* The end of a terminal that a command gets: by the master itself, or by its number where the kernel cannot (gVisor). */
static int slave(int master) {
    int fd = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), number;
    char path[32];
    if (fd >= 0 || (errno != ENOTTY && errno != EINVAL) || ioctl(master, TIOCGPTN, &number)) return fd;
    snprintf(path, sizeof path, "/dev/pts/%d", number);
    return open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

static void start(struct request request, int *fds, int count) {
    int stays = request.flags & 2;
    int slot = 0, master = -1, terminal = -1, error = 0;
    while (slot < MAX_CHILDREN && children[slot].pid) slot++;
    if (slot == MAX_CHILDREN || count < 1 || (stays && count < 2)) error = EAGAIN;
    if (!error && (request.flags & 1)) { /* a terminal of the sandbox's own devpts: pty(7) */
        int unlock = 0;
        master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock)) error = errno;
        if (!error && (terminal = slave(master)) < 0) error = errno;
    }
    char *end = NULL, *text = error ? NULL : text_of(fds[0], &end), *at = text;
    if (!error && !text) error = E2BIG; /* as execve(2) says it */
    pid_t pid = -1;
    if (!error) {
        int given[MAX_FDS], used = 1 + !!stays, total = 0;
        for (int null; (null = total < 3 && request.value >> total & 1) || used < count; total++) given[total] = null ? 0 : fds[used++];
        struct command command = {.fds = given, .count = total, .terminal = terminal};
        command.cwd = next(&at, end);
        command.arguments = list(&at, end);
        command.environment = list(&at, end);
        volatile int failed;
        pid = spawn(&command, &failed);
        error = pid < 0 ? errno : failed;
        free(command.arguments);
        free(command.environment);
    }
    free(text);
    if (error) {
        tell('F', request.id, error, "", NULL, 0);
    } else {
        children[slot].pid = pid;
        children[slot].id = request.id;
        children[slot].terminal = stays ? fcntl(master, F_DUPFD_CLOEXEC, 3) : -1;
        if (terminal >= 0) close(terminal);
        terminal = -1;
        if (stays) copy(fds[1], master), copy(master, fds[1]);
        tell('S', request.id, pid, "", &master, master >= 0 && !stays);
    }
    if (terminal >= 0) close(terminal);
    if (master >= 0) close(master);
}

static void reap(void) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < MAX_CHILDREN; i++)
            if (children[i].pid == pid) {
                tell('Q', children[i].id, status, "", NULL, 0);
                children[i].pid = 0;
                if (children[i].terminal >= 0) close(children[i].terminal);
                children[i].terminal = -1;
            }
}

static int inside(int argc, char **argv) {
    if (argc < 3) _exit(EXIT_STEP);
    notes = (int)number(argv[0]);
    int wanted = (int)number(argv[1]), holding = (int)number(argv[2]), abi = landlock_abi(), guest = argc > 5 && !strcmp(argv[3], "guest");
    if (holding >= 0) await(holding);
    if (wanted && abi < wanted) {
        errno = EOPNOTSUPP;
        fail("landlock ABI");
    }
    if (notes < 3 && (notes = fcntl(notes, F_DUPFD, 3)) < 0) _exit(EXIT_STEP); /* it came as standard input */
    /* The one or two sockets stay, and nothing else. */
    int mounts = guest ? (int)number(argv[4]) : notes, low = mounts < notes ? mounts : notes, high = mounts < notes ? notes : mounts;
    if (fcntl(notes, F_SETFD, FD_CLOEXEC) || fcntl(mounts, F_SETFD, FD_CLOEXEC)) fail("descriptors");
    if (low > 3 && close_range(3, (unsigned)low - 1, 0)) fail("descriptors");
    if (high > low + 1 && close_range((unsigned)low + 1, (unsigned)high - 1, 0)) fail("descriptors");
    if (close_range((unsigned)high + 1, LAST, 0)) fail("descriptors");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) fail("dumpable"); /* /proc/1 tells the sandbox nothing, ptrace is refused */
    if (wanted) landlock(abi, argc - 3, argv + 3);
    if (guest) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC); /* what we started with is the host's, and root could write to it here */
        if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0 || close(null)) fail("standard streams");
        guest_filter();
    }
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigset_t ended;
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    int signals = signalfd(-1, &ended, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0) fail("signalfd");
    if (guest) take(mounts, argv[5]);
    tell('R', 0, wanted ? abi : 0, "", NULL, 0);
    struct pollfd watched[2] = {{.fd = notes, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    for (;;) {
        if (poll(watched, 2, -1) < 0 && errno != EINTR) _exit(EXIT_STEP);
        if (watched[1].revents) {
            struct signalfd_siginfo ignored;
            while (read(signals, &ignored, sizeof ignored) > 0) {}
            reap();
        }
        if (!watched[0].revents) continue;
        struct request request;
        struct iovec part = {&request, sizeof request};
        union {
            struct cmsghdr header;
            char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
        } control;
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t size = recvmsg(notes, &message, MSG_CMSG_CLOEXEC);
        if (size < 0 && errno == EINTR) continue;
        /* End of file: whoever made this sandbox is gone. We are its init, so with us the kernel ends everything in it (pid_namespaces(7)). */
        if (size != (ssize_t)sizeof request || (message.msg_flags & MSG_CTRUNC)) _exit(0);
        int fds[MAX_FDS], count = 0;
        for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each))
            if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SCM_RIGHTS) {
                count = (int)((each->cmsg_len - CMSG_LEN(0)) / sizeof(int));
                memcpy(fds, CMSG_DATA(each), sizeof(int) * (size_t)count);
            }
        if (request.kind == 'X')
            start(request, fds, count);
        else if (request.kind == 'H')
            tell('R', 0, wanted ? abi : 0, "", NULL, 0);
        else if (request.kind == 'W')
            resize(request.id, request.value);
        else if (request.kind == 'K')
            for (int i = 0; i < MAX_CHILDREN; i++)
                if (children[i].pid && children[i].id == request.id) kill(-children[i].pid, request.value);
        for (int i = 0; i < count; i++) close(fds[i]);
    }
}

/* ---- enter ------------------------------------------------------------------------------------------------------------------ */

/* A seccomp program, as `seccomp.py` has written it (struct sock_filter of seccomp(2)). */
static void filter(int file) {
    static struct sock_filter code[BPF_MAXINSNS];
    ssize_t size = pread(file, code, sizeof code, 0);
    const struct sock_fprog program = {(unsigned short)(size / (ssize_t)sizeof *code), code};
    if (size <= 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) fail("seccomp");
}

/* Held by the same namespaces and filters as what runs there already; what it writes in DIR is nobody else's to read. Ends as ARGV does. */
static int enter(int argc, char **argv) {
    int i = 2, status;
    static char *empty[] = {NULL};
    if (argc < 4) _exit(EXIT_STEP);
    int process = (int)syscall(SYS_pidfd_open, number(argv[0]), 0), directory = (int)number(argv[1]);
    if (process < 0 || close_range(3, LAST, CLOSE_RANGE_CLOEXEC)) fail("the sandbox's process");
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS) fail("session keyring");
    if (setns(process, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)) fail("join the sandbox");
    if (fchdir(directory)) fail("directory");
    umask(077);
    pid_t pid = fork(); /* children are in the PID namespace, and end with it */
    if (pid < 0) fail("fork");
    if (pid == 0) {
        setsid();
        for (; i < argc && strcmp(argv[i], "--"); i++) filter((int)number(argv[i]));
        if (i + 1 < argc) execve(argv[i + 1], argv + i + 1, empty);
        fail("exec");
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) fail("wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_STEP;
}

int main(int argc, char **argv) {
    if (argc >= 2 && !strcmp(argv[1], "door")) return door(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "launch")) return launch(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "late")) return late(argc - 2, argv + 2, 0);
    if (argc >= 2 && !strcmp(argv[1], "mounted")) return late(argc - 2, argv + 2, 1);
    if (argc >= 2 && !strcmp(argv[1], "bind")) return bind_late(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "enter")) return enter(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "inside")) return inside(argc - 2, argv + 2);
    dprintf(2, "stockade: step: started by hand? it serves walls/native only\n");
    return EXIT_STEP;
}
