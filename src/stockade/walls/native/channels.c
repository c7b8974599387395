/* What a tunnel (tunnel.c) is made of: the queue for the stream, and channels, each a near descriptor or two whose bytes go over in pieces. */
#include "step.h"
#include "tunnel.h"

#include <poll.h>

struct channel channels[CHANNELS];
int highest, stream, in_guest, listening = -1, sets_clock;
size_t queued, sent;
static char *queue; /* for the stream: `queued` bytes from `sent` */
static size_t room;

void broken(const char *what) {
    dprintf(2, "stockade: the %s is not as agreed: %s\n", in_guest ? "host's stream" : "guest's stream", what);
    _exit(EXIT_STEP);
}

void *memory(void *old, size_t size) {
    void *made = realloc(old, size);
    if (!made) broken("no memory");
    return made;
}

/* ---- to the stream --------------------------------------------------------------------------------------------------------- */

char *append(size_t size) {
    if (sent && (sent == queued || sent + size > FULL)) {
        memmove(queue, queue + sent, queued - sent);
        queued -= sent;
        sent = 0;
    }
    if (queued + size > room) queue = memory(queue, room = queued + size + PIECE);
    queued += size;
    return queue + queued - size;
}

void frame(int kind, int number, const void *data, size_t size) {
    struct frame head = {.kind = (uint16_t)kind, .channel = (uint16_t)number, .size = (uint32_t)size};
    char *place = append(sizeof head + size);
    memcpy(place, &head, sizeof head);
    if (size) memcpy(place + sizeof head, data, size);
}

void flush(void) {
    while (sent < queued) {
        ssize_t size = write(stream, queue + sent, queued - sent);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0 && errno == EAGAIN) return;
        if (size <= 0) _exit(0); /* the other end is gone */
        sent += (size_t)size;
    }
    sent = queued = 0;
}

/* ---- channels -------------------------------------------------------------------------------------------------------------- */

struct channel *find(int number) {
    for (int i = 0; i < highest; i++)
        if (channels[i].number == number) return &channels[i];
    return NULL;
}

struct channel *open_channel(int number, uint32_t id, int in, int out) {
    for (int i = 0; i < CHANNELS; i++)
        if (!channels[i].number) {
            channels[i] = (struct channel){.number = number, .id = id, .in = in, .out = out, .credit = WINDOW, .granted = WINDOW};
            if (i >= highest) highest = i + 1;
            return &channels[i];
        }
    return NULL;
}

void settle(struct channel *channel) {
    if (channel->number && channel->in < 0 && channel->out < 0 && !channel->say_end && !channel->say_stop && channel->last) {
        free(channel->waiting);
        *channel = (struct channel){0};
        while (highest && !channels[highest - 1].number) highest--;
    }
}

void close_in(struct channel *channel) {
    if (channel->in < 0) return;
    if (channel->in != channel->out) close(channel->in);
    channel->in = -1;
    channel->say_end = 1;
}

/* Of a pair of sockets each direction ends by itself. */
void close_out(struct channel *channel) {
    if (channel->out < 0) return;
    if (channel->in == channel->out) shutdown(channel->out, SHUT_WR);
    else close(channel->out);
    channel->out = -1;
    channel->size = 0;
    free(channel->waiting);
    channel->waiting = NULL;
}

static void passed(struct channel *channel, uint32_t size) { channel->before -= size < channel->before ? size : channel->before; }

void take_in(struct channel *channel) {
    char data[PIECE];
    size_t most = channel->credit < sizeof data ? channel->credit : sizeof data;
    ssize_t size = read(channel->in, data, most);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) {
        close_in(channel);
        return;
    }
    channel->credit -= (uint32_t)size;
    passed(channel, (uint32_t)size);
    frame(T_DATA, channel->number, data, (size_t)size);
}

/* Write to near as much as it takes; gives how much, -1 when nobody wants it any more. The descriptor may not be ours alone, so it may block: but never for a piece
 * of PIPE_BUF when poll(2) has said that it can be written to. */
static ssize_t give(struct channel *channel, const char *data, uint32_t size) {
    uint32_t done = 0;
    while (done < size) {
        struct pollfd can = {.fd = channel->out, .events = POLLOUT};
        if (poll(&can, 1, 0) <= 0) break;
        ssize_t more = can.revents & POLLERR ? -1 : write(channel->out, data + done, size - done < 4096 ? size - done : 4096);
        if (more < 0 && !(can.revents & POLLERR) && (errno == EAGAIN || errno == EINTR)) break;
        if (more < 0) return -1;
        done += (uint32_t)more;
    }
    channel->owed += done;
    passed(channel, done);
    return done;
}

void unwanted(struct channel *channel) {
    close_out(channel);
    channel->before = 0;
    channel->say_stop = 1;
}

void put_out(struct channel *channel) {
    ssize_t size = give(channel, channel->waiting + channel->start, channel->size);
    if (size < 0) {
        unwanted(channel);
        return;
    }
    channel->start += (uint32_t)size;
    channel->size -= (uint32_t)size;
    if (channel->size) return;
    free(channel->waiting);
    channel->waiting = NULL;
    if (channel->last) close_out(channel);
}

void arrive(struct channel *channel, const char *data, uint32_t size) {
    if (size > channel->granted) broken("more than was granted");
    channel->granted -= size;
    if (channel->last) broken("data after its end");
    if (channel->out < 0) return; /* it was told to stop, and had sent this before */
    ssize_t done = channel->size ? 0 : give(channel, data, size);
    if (done < 0) unwanted(channel);
    if (done < 0 || (uint32_t)done == size) return;
    size -= (uint32_t)done;
    if (!channel->waiting) {
        channel->waiting = memory(NULL, WINDOW);
        channel->start = 0;
    }
    if (channel->start + channel->size + size > WINDOW) {
        memmove(channel->waiting, channel->waiting + channel->start, channel->size);
        channel->start = 0;
    }
    memcpy(channel->waiting + channel->start + channel->size, data + done, size); /* never above WINDOW: what is not written is not granted again */
    channel->size += size;
}
