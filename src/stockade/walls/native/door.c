/* A door: a user and network namespace without any route, and the sockets that listen in it (walls/door.py). */
#include "step.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/if_tun.h>
#include <linux/veth.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

/* What a user has only so much of in all namespaces together: whoever uses it up in here would take it from every program outside. What is left to those below is this
 * part of it: of the kernel's own limits by /proc/sys/user (as far as that can be written to; it is no wall), of resources by those of whoever makes the namespace. */
static const struct {
    const char *path;
    long part;
} shared[] = {{"/proc/sys/user/max_inotify_instances", 4}, {"/proc/sys/user/max_inotify_watches", 2}};
enum { SHARED = sizeof shared / sizeof *shared };
static const int resources[] = {RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE};

static void less(void) {
    for (unsigned i = 0; i < sizeof resources / sizeof *resources; i++) {
        struct rlimit limit;
        if (getrlimit(resources[i], &limit)) fail("getrlimit");
        if (limit.rlim_cur == RLIM_INFINITY) continue;
        limit.rlim_cur = limit.rlim_max = limit.rlim_cur / 4;
        if (setrlimit(resources[i], &limit)) fail("setrlimit");
    }
}

static void look(long *found) {
    for (int i = 0; i < SHARED; i++) {
        FILE *file = fopen(shared[i].path, "re");
        if (!file || fscanf(file, "%ld", &found[i]) != 1) found[i] = 0;
        if (file) fclose(file);
    }
}

static void share(const long *found) {
    for (int i = 0; i < SHARED; i++) {
        int fd = found[i] ? open(shared[i].path, O_WRONLY | O_CLOEXEC) : -1;
        if (fd < 0) continue;
        dprintf(fd, "%ld", found[i] / shared[i].part);
        close(fd);
    }
}

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

/* Bring an interface up, with an address of the wire's range unless 0. */
void interface_up(int sock, const char *name, uint32_t address) {
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

/* The guest's end of the wire: its address, and the door as its only way. */
void wire_up(int sock) {
    interface_up(sock, "eth0", GUEST_ADDRESS);
    struct rtentry route = {.rt_dst = inet(0), .rt_genmask = inet(0), .rt_gateway = inet(DOOR_ADDRESS), .rt_flags = RTF_UP | RTF_GATEWAY};
    if (ioctl(sock, SIOCADDRT, &route)) fail("guest's route");
}

/* For a virtual machine: a tap interface (Documentation/networking/tuntap.rst) in the door's namespace; what is read from and written to the descriptor are the frames
 * on the wire. Whoever has it can do no more than that. */
static int tap(int plain) {
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0) fail("/dev/net/tun");
    struct ifreq ask = {.ifr_name = "guest", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    if (ioctl(fd, TUNSETIFF, &ask)) fail("tap");
    interface_up(plain, "guest", DOOR_ADDRESS);
    return fd;
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
    interface_up(plain, "guest", DOOR_ADDRESS);
    interface_up(inner, "lo", 0);
    wire_up(inner);
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

int door(int argc, char **argv) {
    if (argc < 1) _exit(EXIT_STEP);
    notes = (int)number(argv[0]);
    int tapped = argc > 1 && !strcmp(argv[1], "tap"), wired = tapped || (argc > 1 && !strcmp(argv[1], "veth"));
    uid_t uid = geteuid();
    gid_t gid = getegid();
    long found[SHARED];
    look(found);
    less();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET)) fail("unshare user and network namespace");
    write_file("/proc/self/setgroups", "deny"); /* user_namespaces(7): needed before an unprivileged gid_map */
    write_file("/proc/self/uid_map", "%u %u 1", wired ? 0 : uid, uid); /* a kernel of the guest's own wants to be root where it runs */
    write_file("/proc/self/gid_map", "%u %u 1", wired ? 0 : gid, gid);
    share(found);

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
    fds[count++] = tapped ? tap(plain) : wired ? wire(here, plain) : here;
    if ((fds[count++] = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC)) < 0) fail("user namespace");
    if (wired) fds[count++] = here; /* so that the wire's end answers, with refusals, when the listeners are closed */
    tell('D', 0, count, "", fds, count);
    return 0;
}
