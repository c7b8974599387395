/* What the two ends of a tunnel have in common (tunnel.c). */
#ifndef TUNNEL_H
#define TUNNEL_H

#include <stdint.h>

/* One piece of the stream; byte order is the machine's, which is the same at both ends. HELLO and READY come before the tunnel is one (machine.c). */
enum { T_HELLO = 1, T_READY, T_MESSAGE, T_SHUT, T_DATA, T_END, T_STOP, T_CREDIT };
struct frame {
    uint16_t kind, channel; /* T_SHUT: which socket */
    uint32_t size;          /* of what follows */
};

/* Pass on messages and descriptors until either end is gone; leaves the program for anything that is not as agreed. `over` is the stream, `sockets` lead to somebody
 * near; returns in a guest whose init has ended. */
void tunnel(int over, int inside_guest, const int sockets[2]);

#endif
