/* What the parts of `step` share (step.c says what it is). */
#ifndef STEP_H
#define STEP_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

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

extern int notes; /* where failures are reported; -1: standard error */

/* step.c */
void tell(uint32_t kind, uint32_t id, int32_t value, const char *text, const int *fds, int count);
ssize_t send_with(int sock, const void *data, size_t size, const int *fds, int count, int flags);
void fail(const char *what) __attribute__((noreturn));
long number(const char *text);
char *text_of(int blob, char **end);
pid_t greeted(int sock);

/* mounts.c */
int again(int pinned);
void mount_overlay(char *spec);
int cloned(int at, const char *path, const char *mode);
void put(int tree, int place);
int place_at(int root, const char *path, int like);

/* confine.c */
int landlock_abi(void);
void landlock(int abi, int count, char **rules);
void guest_filter(void);

/* late.c */
void take(int sock, const char *dir, int sealed);

/* launch.c */
void hold(int blob);

/* door.c */
void interface_up(int sock, const char *name, uint32_t address);
void wire_up(int sock);

/* The verbs: door.c, launch.c, late.c, inside.c, enter.c, machine.c, add.c */
int door(int argc, char **argv);
int launch(int argc, char **argv);
int late(int argc, char **argv, int wait);
int bind_late(int argc, char **argv);
int inside(int argc, char **argv);
int enter(int argc, char **argv);
int machine(int argc, char **argv);
int guest(void);
int add(int argc, char **argv);
int hold_again(int argc, char **argv);

#endif
