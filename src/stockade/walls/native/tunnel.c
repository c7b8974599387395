/* Messages that carry descriptors, over one stream of bytes: what a machine without shared kernel needs in place of SCM_RIGHTS (unix(7)).
 *
 * Both ends are this code. Each has one or two SOCK_SEQPACKET sockets to somebody near (outside the supervisor, inside our init), and the stream to the other end, a
 * virtio console port. A message of the host's goes over with the contents of its first descriptor; for each further one a channel is opened: the guest
 * makes a pipe or a pair of sockets, hands one end on, and the bytes go over in pieces. Each direction of a channel has a window, so that one that nobody reads holds up
 * no other (as RFC 4254, section 5.2).
 *
 * INVARIANT: nothing that arrives is believed. A length, kind, channel or state that cannot be ends this program, and with it the sandbox; what is held for the other
 * end is bounded by WINDOW for each direction that we have opened ourselves.
 * INVARIANT: the guest's messages never carry descriptors, and open nothing. Where the guest's processes may call on the host, it lends channels beforehand ('A'), each for
 * one connection to the guest's listening socket: that they are too many, or come from somewhere else, cannot be.
 */
#include "step.h"
#include "tunnel.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>

enum {
    HELD = 1024, /* notes that wait for what belongs before them */
    NO_BLOB = -1,
};
enum { SOURCE = 1, SINK = 2 }; /* what a descriptor is at the host: the command's input comes from it, its output goes to it */

struct held { /* a note about a command that has ended, and what belongs before it has not been passed on yet */
    int socket;
    char data[sizeof(struct note)];
};

static struct held held[HELD];
static int holding, next_number = 1;
static int near[2], shut[2];
static char *frames; /* from the stream */
static size_t arrived, space;
static int stalled = -1; /* whose socket is full: nothing more is taken from the stream until it is not */

/* ---- messages -------------------------------------------------------------------------------------------------------------- */

/* How a message goes over: this, its bytes, then a kind for each descriptor, then what the first of them holds. */
struct message {
    int32_t blob; /* bytes; NO_BLOB = it has no descriptors */
    uint16_t socket, size, count;
    struct {
        uint16_t number, kind;
    } given[MAX_FDS];
};

/* What is at descriptor `place` of a request to execute: its input, or one of its outputs; -1 = a pair of sockets. */
static int kind_of(int fd, const struct request *request, int index) {
    struct stat found;
    int mode = fcntl(fd, F_GETFL) & O_ACCMODE;
    if (fstat(fd, &found)) return SINK;
    if (S_ISSOCK(found.st_mode)) return SOURCE | SINK;
    if (mode != O_RDWR) return mode == O_RDONLY ? SOURCE : SINK;
    int target = index; /* a terminal, say, that was opened for both: whose place it takes says what it is for */
    for (int i = 0; i <= target && i < 3; i++) target += request->value >> i & 1;
    return target ? SINK : SOURCE;
}

static int slots(void) {
    int free_ones = 0;
    for (int i = 0; i < CHANNELS; i++) free_ones += !channels[i].number;
    return free_ones;
}

/* Send on a message from near, on the host. */
static void outgoing(int socket, const char *data, size_t size, int *fds, int count) {
    struct message message = {.blob = NO_BLOB, .socket = (uint16_t)socket, .size = (uint16_t)size, .count = (uint16_t)(count ? count - 1 : 0)};
    struct request request = {0};
    memcpy(&request, data, size < sizeof request ? size : sizeof request);
    if (count > 1 + slots()) {
        tell('F', request.id, EMFILE, "", NULL, 0);
        for (int i = 0; i < count; i++) close(fds[i]);
        return;
    }
    char *text = NULL;
    if (count) {
        off_t length = lseek(fds[0], 0, SEEK_END);
        message.blob = length > 0 && length <= MAX_BLOB ? (int32_t)length : 0; /* one that is too large arrives empty, and is refused there */
        text = memory(NULL, (size_t)message.blob + 1);
        if (pread(fds[0], text, (size_t)message.blob, 0) != message.blob) message.blob = 0;
        close(fds[0]);
    }
    int stays = request.kind == 'X' && request.flags & 2;
    for (int i = 0; i < message.count; i++) {
        int fd = fds[i + 1], kind = stays && !i ? SOURCE | SINK : kind_of(fd, &request, i - stays);
        do next_number = next_number % UINT16_MAX + 1;
        while (find(next_number));
        struct channel *channel = open_channel(next_number, request.id, kind & SOURCE ? fd : -1, kind & SINK ? fd : -1);
        channel->last = !(kind & SINK);
        message.given[i].number = (uint16_t)next_number;
        message.given[i].kind = (uint16_t)kind;
    }
    size_t blob = message.blob > 0 ? (size_t)message.blob : 0;
    struct frame head = {.kind = T_MESSAGE, .size = (uint32_t)(sizeof message + size + blob)};
    char *place = append(sizeof head + head.size);
    memcpy(place, &head, sizeof head);
    memcpy(place += sizeof head, &message, sizeof message);
    memcpy(place += sizeof message, data, size);
    if (blob) memcpy(place + size, text, blob);
    free(text);
}

/* What a command has written before it ended comes before the note that it has: remember how much that is. More may come, of those that it has left behind. */
static void mark(const struct note *note) {
    for (int i = 0; note->kind == 'Q' && i < highest; i++) {
        struct channel *channel = &channels[i];
        int size = 0;
        if (!channel->number || channel->id != note->id) continue;
        if (in_guest) channel->before = channel->in >= 0 && !ioctl(channel->in, FIONREAD, &size) && size > 0 ? (uint32_t)size : 0;
        else channel->before = channel->size;
    }
}

static int early(const struct note *note) {
    for (int i = 0; note->kind == 'Q' && i < highest; i++)
        if (channels[i].number && channels[i].id == note->id && channels[i].before && (in_guest ? channels[i].in : channels[i].out) >= 0) return 1;
    return 0;
}

/* Hand on what has come to near; 0 when its socket is full. */
static int hand(int socket, const char *data, size_t size, const int *fds, int count) {
    if (send_with(near[socket], data, size, fds, count, MSG_DONTWAIT) >= 0) return 1;
    if (errno == EAGAIN || errno == EINTR) {
        stalled = socket;
        return 0;
    }
    if (!in_guest) _exit(0); /* whoever made this sandbox is gone */
    return 1;             /* our init has ended, which is seen at its socket */
}

/* Ends of pipes and sockets for a message that came with descriptors, in the guest; gives how many, or -1 and errno. */
static int unpack(const struct message *message, uint32_t id, const char *blob, int *fds) {
    int count = 0, memfd = memfd_create("stockade", MFD_CLOEXEC);
    if (memfd < 0) return -1;
    fds[count++] = memfd;
    for (ssize_t done = 0, more; done < message->blob; done += more)
        if ((more = write(memfd, blob + done, (size_t)(message->blob - done))) < 0) goto failed;
    for (int i = 0; i < message->count; i++) {
        int kind = message->given[i].kind, pair[2], far, ours;
        if (kind == (SOURCE | SINK) ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) : pipe2(pair, O_CLOEXEC)) goto failed;
        far = kind == SINK ? pair[1] : pair[0];
        ours = kind == SINK ? pair[0] : pair[1];
        fds[count++] = far;
        fcntl(ours, F_SETFL, O_NONBLOCK);
        struct channel *channel = open_channel(message->given[i].number, id, kind & SINK ? ours : -1, kind & SOURCE ? ours : -1);
        if (!channel) {
            close(ours);
            errno = EMFILE;
            goto failed;
        }
        channel->last = !(kind & SOURCE);
    }
    return count;
failed:;
    int error = errno;
    for (int i = 0; i < message->count; i++) { /* what the host has opened is over, at both ends */
        struct channel *channel = find(message->given[i].number);
        if (!channel && !(channel = open_channel(message->given[i].number, id, -1, -1))) broken("no channels");
        close_in(channel), close_out(channel);
        channel->say_end = !!(message->given[i].kind & SINK);
        channel->say_stop = !!(message->given[i].kind & SOURCE);
        channel->last = !channel->say_stop;
    }
    for (int i = 0; i < count; i++) close(fds[i]);
    errno = error;
    return -1;
}

/* Send a note of the guest's on. */
static void say_note(int socket, const struct note *note) {
    struct message plain = {.blob = NO_BLOB, .socket = (uint16_t)socket, .size = sizeof *note};
    char both[sizeof plain + sizeof *note];
    memcpy(both, &plain, sizeof plain), memcpy(both + sizeof plain, note, sizeof *note);
    frame(T_MESSAGE, 0, both, sizeof both);
}

/* A channel that the host has lent and that nobody has taken yet, or NULL. */
static struct channel *lent(void) {
    for (int i = 0; listening >= 0 && i < highest; i++)
        if (channels[i].number && channels[i].lent) return &channels[i];
    return NULL;
}

/* Somebody in the guest has connected. */
static void welcome(void) {
    struct channel *channel = lent();
    int fd = channel ? accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
    if (fd < 0) return;
    channel->in = channel->out = fd;
    channel->lent = 0;
}

/* A message from the other end; 0 when it has to be taken again later. */
static int incoming(const char *data, size_t size) {
    struct message message;
    if (size < sizeof message) broken("a short message");
    memcpy(&message, data, sizeof message);
    const char *text = data + sizeof message;
    size_t blob = message.blob > 0 ? (size_t)message.blob : 0;
    if (message.socket > 1 || message.count >= MAX_FDS || message.size > sizeof(struct note) || sizeof message + message.size + blob != size) broken("a message");
    if (near[message.socket] < 0) return 1;
    if (!in_guest) {
        struct note note;
        if (message.blob != NO_BLOB || message.count || message.socket || message.size != sizeof note) broken("a note");
        memcpy(&note, text, sizeof note);
        if (holding == HELD) return 0;
        mark(&note);
        if (!holding && !early(&note)) return hand(0, text, sizeof note, NULL, 0);
        memcpy(held[holding++].data, text, sizeof note);
        return 1;
    }
    struct request request = {0};
    memcpy(&request, text, message.size < sizeof request ? message.size : sizeof request);
    if (request.kind == 'A' && message.count == 1) {
        struct channel *channel = open_channel(message.given[0].number, 0, -1, -1);
        if (!channel) broken("no channels");
        channel->lent = 1;
        return 1;
    }
    int fds[MAX_FDS], count = 0;
    struct pollfd can = {.fd = near[message.socket], .events = POLLOUT};
    if (poll(&can, 1, 0) == 0) {
        stalled = message.socket;
        return 0;
    }
    if (message.blob != NO_BLOB && (count = unpack(&message, request.id, text + message.size, fds)) < 0) {
        struct note note = {.kind = 'F', .id = request.id, .value = errno};
        say_note(0, &note);
        return 1;
    }
    int done = hand(message.socket, text, message.size, fds, count);
    for (int i = 0; i < count; i++) close(fds[i]);
    if (!done) broken("our init does not listen"); /* it was asked, so this cannot be */
    return 1;
}

/* Notes whose time has come, in their order. */
static void release(void) {
    int left = 0;
    for (int i = 0; i < holding; i++) {
        struct note note;
        memcpy(&note, held[i].data, sizeof note);
        int wait = early(&note);
        if (!wait && in_guest) {
            say_note(held[i].socket, &note);
        } else if (wait || !hand(0, held[i].data, sizeof note, NULL, 0)) {
            held[left++] = held[i];
        }
    }
    holding = left;
}

/* ---- the loop -------------------------------------------------------------------------------------------------------------- */

/* Take one message from near; 0 at its end. */
static int from_near(int socket) {
    char data[sizeof(struct note)];
    struct iovec part = {data, sizeof data};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    } control;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(near[socket], &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
    if (size <= 0) return 0;
    int fds[MAX_FDS], count = 0;
    for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each))
        if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SCM_RIGHTS) {
            count = (int)((each->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds, CMSG_DATA(each), sizeof(int) * (size_t)count);
        }
    if (message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) return 0;
    if (in_guest) { /* a note of our init's */
        for (int i = 0; i < count; i++) close(fds[i]);
        if (holding == HELD || size != sizeof data) broken("notes");
        held[holding].socket = socket;
        struct note note;
        memcpy(&note, data, sizeof note);
        mark(&note);
        memcpy(held[holding++].data, data, sizeof data);
    } else {
        outgoing(socket, data, (size_t)size, fds, count);
    }
    return 1;
}

/* A descriptor that says when the clock has jumped: it was set, or the host has slept, and a guest does not notice that (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). */
static int jumps(void) {
    struct itimerspec never = {.it_value.tv_sec = 1LL << 33};
    int fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (fd < 0 || timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL)) broken("clock");
    return fd;
}

static void understand(void) {
    size_t at = 0;
    stalled = -1;
    while (arrived - at >= sizeof(struct frame)) {
        struct frame head;
        memcpy(&head, frames + at, sizeof head);
        if (head.size > space - sizeof head) broken("a length");
        if (arrived - at < sizeof head + head.size) break;
        const char *data = frames + at + sizeof head;
        struct channel *channel = head.kind == T_MESSAGE || head.kind == T_SHUT ? NULL : find(head.channel);
        uint32_t more;
        struct timespec now;
        if (head.kind == T_MESSAGE) {
            if (!incoming(data, head.size)) break;
        } else if (head.kind == T_SHUT && in_guest && !head.size && head.channel < 2) {
            if (near[head.channel] >= 0) shutdown(near[head.channel], SHUT_WR);
        } else if (head.kind == T_TIME && sets_clock && head.size == sizeof now) {
            memcpy(&now, data, sizeof now);
            clock_settime(CLOCK_REALTIME, &now); /* fails for what is no time */
        } else if (!head.channel || head.kind < T_DATA || head.kind > T_CREDIT || (head.kind != T_DATA && head.size != (head.kind == T_CREDIT) * sizeof more)) {
            broken("a frame");
        } else if (channel && head.kind == T_DATA) {
            arrive(channel, data, head.size);
        } else if (channel && head.kind == T_END) {
            channel->last = 1;
            if (channel->lent) channel->lent = 0, channel->say_end = 1; /* taken back */
            if (!channel->size) close_out(channel);
        } else if (channel && head.kind == T_STOP) {
            close_in(channel);
        } else if (channel) {
            memcpy(&more, data, sizeof more);
            if (more > WINDOW - channel->credit) broken("more credit than there is");
            channel->credit += more;
        }
        at += sizeof head + head.size;
        if (channel) settle(channel);
    }
    memmove(frames, frames + at, arrived - at);
    arrived -= at;
}

/* What is to be said of channels. An end is said once; credit is said again and again, so whoever does not read it is given no more. */
static void say(void) {
    for (int i = 0; i < highest; i++) {
        struct channel *channel = &channels[i];
        if (!channel->number) continue;
        if (queued - sent < FULL && (channel->owed >= WINDOW / 2 || (channel->owed && !channel->size))) {
            frame(T_CREDIT, channel->number, &channel->owed, sizeof channel->owed);
            channel->granted += channel->owed;
            channel->owed = 0;
        }
        if (channel->say_end) frame(T_END, channel->number, NULL, 0);
        if (channel->say_stop) frame(T_STOP, channel->number, NULL, 0);
        channel->say_end = channel->say_stop = 0;
        settle(channel);
    }
}

void tunnel(int over, int inside_guest, const int sockets[2]) {
    static struct pollfd watched[5 + 2 * CHANNELS];
    static struct channel *whose[5 + 2 * CHANNELS];
    stream = over, in_guest = inside_guest, near[0] = sockets[0], near[1] = sockets[1];
    space = sizeof(struct frame) + (in_guest ? sizeof(struct message) + sizeof(struct note) + MAX_BLOB : WINDOW);
    frames = memory(NULL, space);
    fcntl(stream, F_SETFL, O_NONBLOCK);
    int clock = in_guest ? -1 : jumps();
    signal(SIGPIPE, SIG_IGN); /* who does not read any more is seen by the error */
    for (;;) {
        release();
        flush(); /* first, so that credit that was held back for a full queue is said as soon as there is room */
        say();
        flush();
        int count = 5, full = queued - sent >= FULL;
        watched[0] = (struct pollfd){.fd = stream, .events = (short)((stalled < 0 && arrived < space ? POLLIN : 0) | (sent < queued ? POLLOUT : 0))};
        for (int i = 0; i < 2; i++)
            watched[1 + i] = (struct pollfd){.fd = shut[i] ? -1 : near[i], .events = (short)((full || holding == HELD ? 0 : POLLIN) | (stalled == i ? POLLOUT : 0))};
        watched[3] = (struct pollfd){.fd = lent() ? listening : -1, .events = POLLIN};
        watched[4] = (struct pollfd){.fd = clock, .events = POLLIN};
        for (int i = 0; i < highest; i++) {
            struct channel *channel = &channels[i];
            if (!channel->number) continue;
            if (channel->in >= 0 && channel->credit && !full) whose[count] = channel, watched[count++] = (struct pollfd){.fd = channel->in, .events = POLLIN};
            if (channel->out >= 0 && (channel->in != channel->out || channel->size))
                whose[count] = channel, watched[count++] = (struct pollfd){.fd = channel->out, .events = channel->size ? POLLOUT : 0};
        }
        if (poll(watched, (nfds_t)count, -1) < 0 && errno != EINTR) _exit(EXIT_STEP);
        for (int i = 5; i < count; i++) {
            struct channel *channel = whose[i];
            if (!watched[i].revents || !channel->number) continue;
            if (watched[i].events == POLLIN && channel->in == watched[i].fd) take_in(channel);
            else if (channel->out == watched[i].fd && watched[i].events) put_out(channel);
            else if (channel->out == watched[i].fd && watched[i].revents & (POLLERR | POLLHUP)) unwanted(channel);
            settle(channel);
        }
        if (watched[3].revents) welcome();
        uint64_t times;
        struct timespec now;
        if (watched[4].revents && read(clock, &times, sizeof times) < 0 && !clock_gettime(CLOCK_REALTIME, &now)) frame(T_TIME, 0, &now, sizeof now);
        for (int i = 0; i < 2; i++)
            if (watched[1 + i].revents & (POLLIN | POLLHUP | POLLERR) && !from_near(i)) {
                if (!i && !in_guest) _exit(0); /* our supervisor is gone; with us the kernel ends everything in this PID namespace */
                shut[i] = 1;
                if (!in_guest) frame(T_SHUT, i, NULL, 0);
                else if (!i) return flush(); /* our init has ended */
            }
        if (watched[0].revents & (POLLIN | POLLHUP | POLLERR) && stalled < 0 && arrived < space) {
            ssize_t size = read(stream, frames + arrived, space - arrived);
            if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR)) _exit(in_guest ? EXIT_STEP : 0);
            if (size > 0) arrived += (size_t)size;
        }
        understand();
    }
}
