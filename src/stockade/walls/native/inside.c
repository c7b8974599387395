/* The sandbox's init: it runs with all of the sandbox's restrictions on, starts commands that are asked for, and says how they ended. */
#include "step.h"

#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

enum { MAX_CHILDREN = 1024 };
static struct {
    pid_t pid;
    uint32_t id;
    int terminal; /* the master of its terminal, if that stays here; else -1 */
    int begins;   /* readable when it has begun, or could not; 0 when that was told */
    int master;   /* of its terminal, until it is handed out; else -1 */
} children[MAX_CHILDREN];
static int own_kernel; /* the kernel is the guest's own */

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
    int count, terminal, failed; /* `failed`: where to write why it could not begin, -1 = nowhere */
};

/* Become it; gives what went wrong as in errno(3), negative when it was the working directory. In memory that is shared with our parent: system calls only. */
static int become(struct command *command) {
    sigset_t none;
    sigemptyset(&none);
    setsid();
    if (command->terminal >= 0) {
        if (ioctl(command->terminal, TIOCSCTTY, 0)) return errno;
        for (int i = 0; i < 3; i++)
            if (dup2(command->terminal, i) < 0) return errno;
    }
    /* First out of the way, then into place: a descriptor to be moved may sit where another belongs. Low numbers: RLIMIT_NOFILE may be small. */
    int first = command->terminal >= 0 ? 3 : 0, moved[MAX_FDS], count = command->count, failed = -1;
    if (command->failed >= 0 && (failed = fcntl(command->failed, F_DUPFD_CLOEXEC, first + count)) < 0) return errno;
    command->failed = failed;
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
static pid_t spawn_at_once(struct command *command, volatile int *error) {
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

/* Start a command; gives its number, or -1 and errno. Whether it could be executed is told later, at `begins`. INVARIANT: we never wait for it. Whoever runs in here
 * can stop it before it is a command (nobody can block SIGSTOP), and we would serve nobody, and not notice that our supervisor is gone. */
static pid_t spawn(struct command *command, int *begins) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) return -1;
    command->failed = ends[1];
    pid_t pid = fork();
    if (pid == 0) {
        int error = become(command);
        if (write(command->failed, &error, sizeof error) < 0) _exit(EXIT_STEP);
        _exit(EXIT_STEP);
    }
    int error = errno;
    close(ends[1]);
    if (pid < 0) close(ends[0]);
    errno = error;
    *begins = ends[0];
    return pid;
}

/* Tell how the beginning of a command went. */
static void begun(int slot) {
    int error = 0;
    if (read(children[slot].begins, &error, sizeof error) != sizeof error) error = 0;
    close(children[slot].begins);
    children[slot].begins = 0;
    if (error) tell('F', children[slot].id, error, "", NULL, 0);
    else tell('S', children[slot].id, children[slot].pid, "", &children[slot].master, children[slot].master >= 0);
    if (children[slot].master >= 0) close(children[slot].master);
    children[slot].master = -1;
    if (error) children[slot].id = 0; /* of which nobody knows; its number is the kernel's until it is waited for */
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
    int slot = 0, master = -1, terminal = -1, error = 0, begins = 0;
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
        struct command command = {.fds = given, .count = total, .terminal = terminal, .failed = -1};
        command.cwd = next(&at, end);
        command.arguments = list(&at, end);
        command.environment = list(&at, end);
        if (own_kernel) {
            volatile int failed;
            pid = spawn_at_once(&command, &failed);
            error = pid < 0 ? errno : failed;
        } else {
            error = (pid = spawn(&command, &begins)) < 0 ? errno : 0;
        }
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
        children[slot].begins = begins;
        children[slot].master = -1;
        if (terminal >= 0) close(terminal);
        terminal = -1;
        if (stays) copy(fds[1], master), copy(master, fds[1]);
        if (begins) children[slot].master = master, master = -1;
        else tell('S', request.id, pid, "", &master, master >= 0 && !stays);
    }
    if (terminal >= 0) close(terminal);
    if (master >= 0) close(master);
}

static void reap(void) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < MAX_CHILDREN; i++)
            if (children[i].pid == pid) {
                if (children[i].begins) begun(i);
                if (children[i].id) tell('Q', children[i].id, status, "", NULL, 0);
                children[i].pid = 0;
                if (children[i].terminal >= 0) close(children[i].terminal);
                children[i].terminal = -1;
            }
}

/* Say to the holder (launch.c) that the mounts stand, and go on once it has answered. */
static void await(int holding) {
    char byte;
    if (write(holding, "", 1) == 1 && read(holding, &byte, 1) == 1) return;
    errno = ECANCELED;
    fail("hold paths in place");
}

int inside(int argc, char **argv) {
    if (argc < 3) _exit(EXIT_STEP);
    notes = (int)number(argv[0]);
    int wanted = (int)number(argv[1]), holding = (int)number(argv[2]), abi = landlock_abi(), guest = argc > 5 && !strcmp(argv[3], "guest");
    own_kernel = guest;
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
    if (guest) take(mounts, argv[5], argc > 6 && !strcmp(argv[6], "ro"));
    tell('R', 0, wanted ? abi : 0, "", NULL, 0);
    static struct pollfd watched[2 + MAX_CHILDREN];
    static int whose[2 + MAX_CHILDREN];
    for (;;) {
        nfds_t count_of = 2;
        watched[0] = (struct pollfd){.fd = notes, .events = POLLIN};
        watched[1] = (struct pollfd){.fd = signals, .events = POLLIN};
        for (int i = 0; i < MAX_CHILDREN; i++)
            if (children[i].pid && children[i].begins) whose[count_of] = i, watched[count_of++] = (struct pollfd){.fd = children[i].begins, .events = POLLIN};
        if (poll(watched, count_of, -1) < 0 && errno != EINTR) _exit(EXIT_STEP);
        for (nfds_t i = 2; i < count_of; i++)
            if (watched[i].revents) begun(whose[i]);
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
                if (children[i].pid && children[i].id == request.id && kill(-children[i].pid, request.value) && errno == ESRCH)
                    kill(children[i].pid, request.value); /* it leads no group yet */
        for (int i = 0; i < count; i++) close(fds[i]);
    }
}
