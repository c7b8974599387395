/* What the init gives up before it serves anybody: Landlock, and in a guest with a kernel of its own namespaces. */
#include "step.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

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

int landlock_abi(void) { return (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION); }

void landlock(int abi, int count, char **rules) {
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
 * given; and none of the parts of a kernel that break most often and that programs do without (as walls/seccomp.py refuses them). (runsc's own reading of such
 * rules in the OCI configuration knows no ENOSYS, on which the C library falls back from clone3(2) to clone(2).) */
void guest_filter(void) {
#if defined(__x86_64__)
    const uint32_t machine = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
    const uint32_t machine = AUDIT_ARCH_AARCH64;
#endif
    static const uint32_t refused[] = {SYS_setns, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_add_key, SYS_request_key, SYS_keyctl, SYS_bpf,
                                       SYS_perf_event_open, SYS_userfaultfd, SYS_open_by_handle_at, SYS_kexec_load, SYS_init_module, SYS_finit_module};
    static const uint32_t families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};
    enum { REFUSED = sizeof refused / sizeof *refused, FAMILIES = sizeof families / sizeof *families };
    struct sock_filter code[20 + 2 * REFUSED + 2 * FAMILIES];
    unsigned short size = 0;
    const struct sock_filter number_of = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    const struct sock_filter first = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])); /* both machines have the low half first */
    const struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW), deny = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    code[size++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, machine, 1, 0);
    code[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[size++] = number_of;
    for (int i = 0; i < REFUSED; i++) {
        code[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused[i], 0, 1);
        code[size++] = deny;
    }
    code[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1);
    code[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS);
    code[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 2 + 2 * FAMILIES);
    code[size++] = first;
    for (int i = 0; i < FAMILIES; i++) {
        code[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, families[i], 0, 1);
        code[size++] = allow;
    }
    code[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAFNOSUPPORT);
    code[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_unshare, 1, 0);
    code[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3);
    code[size++] = first;
    code[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_NEWUSER, 0, 1);
    code[size++] = deny;
    code[size++] = allow;
    const struct sock_fprog program = {size, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) fail("seccomp");
}
