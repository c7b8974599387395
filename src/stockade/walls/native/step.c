/* The steps of a sandbox's life that no stock tool takes, as one static program of plain system calls:
 *
 *   step door SOCK [veth|tap] PORT...   make a user and network namespace without any route, send its listening sockets over SOCK
 *   step launch OPTION... -- ARGV...    join a door, mount overlays, set limits, drop what must not be inherited, exec ARGV (bubblewrap)
 *   step late SOCK DIR ARGV...          between bubblewrap and a kernel of the guest's own: let mounts below DIR reach it later, exec ARGV (runsc)
 *   step mounted SOCK DIR ARGV...       the same where all of them have to be there before ARGV
 *   step bind SOCK BLOB DIR ROOT [overlay=...]  mount what BLOB lists below DIR of a sandbox that went through `late`, and tell its guest
 *   step inside SOCK ABI HOLD RULE...   in the sandbox, as its init: apply Landlock, then serve exec requests that arrive on SOCK
 *   step inside SOCK 0 -1 guest LATE DIR  the same where the kernel is the guest's own: first put what arrives below DIR into place
 *   step inside SOCK 0 -1 guest LATE DIR ro|rw   the same; and whether its root is read-only then
 *   step hold PID BLOB                 from outside, make each path of BLOB a read-only mount of itself once more in the sandbox of the process PID
 *   step add PID TREE TARGET            from outside, show the folder that the descriptor TREE pins at TARGET in the sandbox of the process PID, read-only
 *   step enter PID DIR FILTER... -- ARGV...   from outside, into the namespaces of the sandbox's process PID, with the host's directory DIR to work in
 *   step machine LATE HELLO FD... -- ARGV   start QEMU (ARGV), greet its guest with HELLO, and pass on messages and descriptors between it and the supervisor
 *   step guest                          as the first process of a virtual machine: its end of that, and what `inside` finds there
 *
 * INVARIANT: every failure ends the program before the next step; nothing is ever skipped or retried with less.
 * INVARIANT: `inside` runs with all of the sandbox's restrictions on, and what it says is not trusted outside.
 * The host's side of SOCK is walls/native/__init__.py; the message layouts of step.h must match it.
 */
#include "step.h"

int notes = -1; /* where failures are reported; -1: standard error */

/* Send a message with descriptors; as sendmsg(2). */
ssize_t send_with(int sock, const void *data, size_t size, const int *fds, int count, int flags) {
    struct iovec part = {(void *)(uintptr_t)data, size};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * (size_t)count);
    }
    return sendmsg(sock, &message, MSG_NOSIGNAL | flags);
}

void tell(uint32_t kind, uint32_t id, int32_t value, const char *text, const int *fds, int count) {
    struct note note = {.kind = kind, .id = id, .value = value};
    snprintf(note.text, sizeof note.text, "%s", text);
    if (send_with(notes, &note, sizeof note, fds, count, 0) < 0) _exit(EXIT_STEP); /* nobody is listening any more */
}

void fail(const char *what) {
    int error = errno;
    if (notes >= 0)
        tell('E', 0, error, what, NULL, 0);
    else
        dprintf(2, "stockade: %s: %s\n", what, strerror(error));
    _exit(EXIT_STEP);
}

long number(const char *text) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end) {
        errno = EINVAL;
        fail("number");
    }
    return value;
}

/* The strings of a blob, each ended by a NUL; leaves the program for anything else. */
char *text_of(int blob, char **end) {
    off_t size = lseek(blob, 0, SEEK_END);
    char *text = size > 0 && size <= MAX_BLOB ? malloc((size_t)size) : NULL;
    if (!text || pread(blob, text, (size_t)size, 0) != size || text[size - 1]) return NULL;
    *end = text + size;
    return text;
}

/* Wait for the byte that a sandbox's first process sends once its mounts stand; who that is, as this PID namespace numbers it. */
pid_t greeted(int sock) {
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

int main(int argc, char **argv) {
    if (argc >= 2 && !strcmp(argv[1], "door")) return door(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "launch")) return launch(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "late")) return late(argc - 2, argv + 2, 0);
    if (argc >= 2 && !strcmp(argv[1], "mounted")) return late(argc - 2, argv + 2, 1);
    if (argc >= 2 && !strcmp(argv[1], "bind")) return bind_late(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "enter")) return enter(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "hold")) return hold_again(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "add")) return add(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "inside")) return inside(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "machine")) return machine(argc - 2, argv + 2);
    if (argc == 2 && !strcmp(argv[1], "guest")) return guest();
    dprintf(2, "stockade: step: started by hand? it serves walls/native only\n");
    return EXIT_STEP;
}
