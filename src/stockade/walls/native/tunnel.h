/* What the two ends of a tunnel have in common (tunnel.c). */
#ifndef TUNNEL_H
#define TUNNEL_H

#include <stddef.h>
#include <stdint.h>

/* One piece of the stream; byte order is the machine's, which is the same at both ends. HELLO and READY come before the tunnel is one (machine.c). */
enum { T_HELLO = 1, T_READY, T_MESSAGE, T_SHUT, T_DATA, T_END, T_STOP, T_CREDIT, T_TIME };
struct frame {
    uint16_t kind, channel; /* T_SHUT: which socket */
    uint32_t size;          /* of what follows */
};

/* Pass on messages and descriptors until either end is gone; leaves the program for anything that is not as agreed. `over` is the stream, `sockets` lead to somebody
 * near; returns in a guest whose init has ended. */
void tunnel(int over, int inside_guest, const int sockets[2]);

/* ---- between tunnel.c and channels.c --------------------------------------------------------------------------------------- */

enum {
    WINDOW = 256 << 10, /* bytes on their way, for each direction of a channel */
    PIECE = 32 << 10,
    FULL = 512 << 10, /* bytes that wait for the stream: then nothing more is taken from near */
    CHANNELS = 1024,
};

struct channel {
    int number;      /* as both ends call it; 0 = free */
    uint32_t id;     /* of the request that it came with */
    int in, out;     /* what is read for the other end, and what is written to from there; -1 = that direction is over */
    uint32_t credit; /* bytes that the other end still takes */
    uint32_t granted; /* bytes that it may still send */
    uint32_t owed;   /* bytes that were written and are to be granted again */
    char *waiting;   /* what could not be written yet: `size` bytes from `start` */
    uint32_t start, size;
    uint32_t before;              /* bytes that belong before a note that is held */
    char last, say_end, say_stop; /* no more will come; frames that are to be said */
    char lent;                    /* in the guest: it is for whoever comes next to `listening` */
};

extern struct channel channels[CHANNELS];
extern int highest;         /* no channel in use is at it or above */
extern int stream, in_guest;
extern int listening;       /* in the guest: a socket whose connections become channels that the host has lent; -1 = none */
extern int sets_clock;      /* in the guest: whether its clock is ours to set */
extern size_t queued, sent; /* of the queue for the stream */

void broken(const char *what) __attribute__((noreturn)); /* something is not as agreed: leave */
void *memory(void *old, size_t size);                    /* realloc(3), or leave */
char *append(size_t size);
void frame(int kind, int number, const void *data, size_t size);
void flush(void);
struct channel *find(int number);
struct channel *open_channel(int number, uint32_t id, int in, int out);
void settle(struct channel *channel);
void close_in(struct channel *channel);
void close_out(struct channel *channel);
void take_in(struct channel *channel);
void put_out(struct channel *channel);
void arrive(struct channel *channel, const char *data, uint32_t size);
void unwanted(struct channel *channel);

#endif
