/* What one can do to files, each once, in a folder of its own: `modes OUTSIDE AREA...` goes through OPERATIONS in each AREA/NAME and prints a line of JSON for each:
 * its errno (0: allowed) and what the folder looks like from here afterwards. test_modes.py prepares the folders, and looks at them from the host. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

static char *outside; /* a path of the host that is not visible here */

static int put(const char *path, int flags, const char *text) {
    int fd = open(path, flags | O_CLOEXEC, 0644);
    if (fd < 0) return errno;
    int error = text && write(fd, text, strlen(text)) < 0 ? errno : 0;
    if (close(fd) && !error) error = errno;
    return error;
}
static int did(int result) { return result < 0 ? errno : 0; }

static int create(void) { return put("new", O_WRONLY | O_CREAT | O_EXCL, "new\n"); }
static int overwrite(void) { return put("old", O_WRONLY, "XXXX"); }
static int append(void) { return put("old", O_WRONLY | O_APPEND, "more\n"); }
static int cut(void) { return did(truncate("old", 3)); }
static int o_trunc(void) { return put("old", O_WRONLY | O_TRUNC, "short\n"); }
static int moved(void) { return did(rename("old", "moved")); }
static int over(void) { return did(rename("other", "old")); }
static int exchange(void) { return did(renameat2(AT_FDCWD, "old", AT_FDCWD, "other", RENAME_EXCHANGE)); }
static int folder_moved(void) { return did(rename("dir", "moved")); }
static int new_over(void) {
    int error = put("new", O_WRONLY | O_CREAT | O_EXCL, "new\n");
    return error ? error : did(rename("new", "old"));
}
static int removed(void) { return did(unlink("old")); }
static int make_folder(void) { return did(mkdir("new", 0755)); }
static int remove_folder(void) { return did(rmdir("empty")); }
static int remove_tree(void) { return unlink("dir/deep") ? errno : did(rmdir("dir")); }
static int folder_mv(void) { /* as mv(1): a copy, where a rename is refused so */
    if (!rename("dir", "moved")) return 0;
    if (errno != EXDEV || mkdir("moved", 0755)) return errno;
    int error = put("moved/deep", O_WRONLY | O_CREAT | O_EXCL, "deep\n");
    return error ? error : remove_tree();
}
static int folder_to_file(void) {
    int error = remove_tree();
    return error ? error : put("dir", O_WRONLY | O_CREAT | O_EXCL, "new\n");
}
static int file_to_folder(void) {
    if (unlink("old") || mkdir("old", 0755)) return errno;
    return put("old/below", O_WRONLY | O_CREAT | O_EXCL, "new\n");
}
static int hard(void) { return did(link("old", "new")); }
static int hard_out(void) {
    const char *others[] = {outside, "/proc/version", "/etc/passwd"};
    int error = 0;
    for (int i = 0; i < 3; i++)
        if (!(error = did(link(others[i], "new")))) break;
    return error;
}
static int hard_write(void) { return put("twin", O_WRONLY, "XXXX"); }
static int soft(void) { return did(symlink("old", "new")); }
static int soft_replaced(void) { return unlink("link") ? errno : did(symlink("other", "link")); }
static int soft_out(void) {
    if (symlink(outside, "new")) return errno;
    int error = put("new", O_WRONLY | O_TRUNC, "reached\n");
    unlink("new");
    return error;
}
static int through(void) { return put("out", O_WRONLY | O_TRUNC, "reached\n"); }
static int through_relative(void) { return put("up", O_WRONLY | O_TRUNC, "reached\n"); }
static int device(void) { return did(mknod("new", S_IFCHR | 0666, makedev(1, 3))); }
static int whiteout(void) { return did(mknod("new", S_IFCHR | 0666, 0)); } /* needs no privilege since Linux 5.8 */
static int disk(void) { return did(mknod("new", S_IFBLK | 0666, makedev(7, 0))); }
static int pipe_made(void) { return did(mknod("new", S_IFIFO | 0644, 0)); }
static int socket_made(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "new"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int error = fd < 0 ? errno : did(bind(fd, (void *)&name, sizeof name));
    close(fd);
    return error;
}
static int mode(void) { return did(chmod("old", 0755)); }
static int set_uid(void) { return did(chmod("old", 04755)); }
static int set_gid(void) { return did(chmod("old", 02755)); }
static int folder_mode(void) { return did(chmod("dir", 0700)); }
static int attribute(void) { return did(setxattr("old", "user.new", "1", 1, 0)); }
static int attribute_changed(void) { return did(setxattr("old", "user.first", "2", 1, 0)); }
static int attribute_removed(void) { return did(removexattr("old", "user.first")); }
static int folder_attribute(void) { return did(setxattr("dir", "user.new", "1", 1, 0)); }
static int folder_made(void) {
    int error = mkdir("new", 0755) ? errno : did(setxattr("new", "user.new", "1", 1, 0));
    if (error) rmdir("new");
    return error;
}
static int times(void) {
    struct timespec both[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    return did(utimensat(AT_FDCWD, "old", both, 0));
}
static int locked(void) {
    int fd = open("old", O_RDONLY | O_CLOEXEC), error = fd < 0 ? errno : did(flock(fd, LOCK_EX));
    close(fd);
    return error;
}
static int mapped(void) {
    int fd = open("old", O_RDWR | O_CLOEXEC);
    if (fd < 0) return errno;
    char *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int error = at == MAP_FAILED ? errno : 0;
    if (!error) {
        memcpy(at, "XXXX", 4);
        error = did(msync(at, 4096, MS_SYNC));
        munmap(at, 4096);
    }
    close(fd);
    return error;
}
static int nameless(void) {
    int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0644);
    if (fd < 0) return errno;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int error = write(fd, "new\n", 4) < 0 ? errno : did(linkat(AT_FDCWD, path, AT_FDCWD, "new", AT_SYMLINK_FOLLOW));
    close(fd);
    return error;
}
static int hole_or_room(int how, off_t from, off_t size) {
    int fd = open("old", O_RDWR | O_CLOEXEC), error = fd < 0 ? errno : did(fallocate(fd, how, from, size));
    close(fd);
    return error;
}
static int hole(void) { return hole_or_room(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096); }
static int room(void) { return hole_or_room(0, 0, 16384); }
static int copied(void) {
    int from = open("other", O_RDONLY | O_CLOEXEC), to = open("old", O_WRONLY | O_CLOEXEC);
    int error = from < 0 || to < 0 ? errno : did(copy_file_range(from, NULL, to, NULL, 6, 0));
    close(from), close(to);
    return error;
}

static const struct { const char *name; int (*run)(void); } OPERATIONS[] = {
    {"create", create}, {"mkdir", make_folder}, {"overwrite", overwrite}, {"append", append}, {"truncate", cut}, {"o_trunc", o_trunc}, {"mmap", mapped},
    {"punch-hole", hole}, {"fallocate", room}, {"copy_file_range", copied}, {"hard-link-write", hard_write}, {"rename", moved}, {"rename-over", over},
    {"new-over", new_over}, {"exchange", exchange}, {"rename-folder", folder_moved}, {"mv-folder", folder_mv}, {"unlink", removed}, {"rmdir", remove_folder}, {"rm-r", remove_tree},
    {"folder-to-file", folder_to_file}, {"file-to-folder", file_to_folder}, {"link", hard}, {"link-out", hard_out}, {"symlink", soft},
    {"symlink-replaced", soft_replaced}, {"symlink-out", soft_out}, {"through-link", through}, {"through-relative", through_relative}, {"o_tmpfile", nameless},
    {"mknod-char", device}, {"mknod-block", disk}, {"mknod-whiteout", whiteout}, {"mkfifo", pipe_made}, {"socket", socket_made}, {"chmod", mode}, {"set-user-id", set_uid},
    {"set-group-id", set_gid}, {"chmod-folder", folder_mode}, {"xattr", attribute}, {"xattr-changed", attribute_changed}, {"xattr-removed", attribute_removed},
    {"xattr-folder", folder_attribute}, {"xattr-new-folder", folder_made}, {"utimes", times}, {"flock", locked},
};

static uint32_t crc32(const char *path) { /* as zlib's */
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    unsigned char data[65536];
    uint32_t crc = ~0U;
    for (ssize_t got; fd >= 0 && (got = read(fd, data, sizeof data)) > 0;)
        for (ssize_t i = 0; i < got; i++) {
            crc ^= data[i];
            for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320U : 0);
        }
    close(fd);
    return ~crc;
}

static const char *comma;
static void look(const char *top, const char *rel) {
    DIR *here = opendir(top);
    if (!here) return;
    for (struct dirent *entry; (entry = readdir(here));) {
        char path[PATH_MAX], name[PATH_MAX], target[PATH_MAX] = "", names[1024], xattrs[2048] = "";
        struct stat found;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(path, sizeof path, "%s/%s", top, entry->d_name);
        snprintf(name, sizeof name, "%s%s", rel, entry->d_name);
        if (lstat(path, &found)) continue;
        int file = S_ISREG(found.st_mode);
        if (S_ISLNK(found.st_mode) && readlink(path, target, sizeof target - 1) < 0) target[0] = 0;
        ssize_t size = S_ISLNK(found.st_mode) ? 0 : listxattr(path, names, sizeof names);
        if (size < 0 || (getxattr(path, "user.none", NULL, 0) < 0 && errno == ENOTSUP)) strcpy(xattrs, "?"), size = 0;
        for (char *one = names; size > 0 && one < names + size; one += strlen(one) + 1) {
            char value[64] = "";
            if (strncmp(one, "user.", 5)) continue;
            if (getxattr(path, one, value, sizeof value - 1) < 0) value[0] = '?';
            snprintf(xattrs + strlen(xattrs), sizeof xattrs - strlen(xattrs), "%s=%s ", one, value);
        }
        printf("%s\"%s\": [%u, %u, %lu, %lu, %u, \"%s\", \"%s\", %d]", comma, name, found.st_mode & S_IFMT, S_ISLNK(found.st_mode) ? 0 : found.st_mode & 07777,
               file ? (unsigned long)found.st_nlink : 1, file ? (unsigned long)found.st_size : 0, file ? crc32(path) : 0, target, xattrs,
               file && found.st_mtime == 1000000000);
        comma = ", ";
        if (S_ISDIR(found.st_mode)) {
            strcat(name, "/");
            look(path, name);
        }
    }
    closedir(here);
}

int main(int argc, char **argv) {
    outside = argv[1];
    umask(022);
    for (int area = 2; area < argc; area++)
        for (size_t i = 0; i < sizeof OPERATIONS / sizeof *OPERATIONS; i++) {
            if (chdir(argv[area]) || chdir(OPERATIONS[i].name)) return perror(argv[area]), 1;
            int error = OPERATIONS[i].run();
            printf("{\"area\": %d, \"name\": \"%s\", \"error\": %d, \"seen\": {", area - 2, OPERATIONS[i].name, error);
            comma = "";
            look(".", "");
            printf("}}\n");
            fflush(stdout);
        }
    return 0;
}
