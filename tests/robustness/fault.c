/* Loaded before the C library (LD_PRELOAD): counts what a process does to files and makes operation FAULT_AT fail.
 *
 *   FAULT_MODE=log   writes "kind path" of each operation to standard error, nothing fails
 *   FAULT_MODE=kill  kill -9 before the operation
 *   FAULT_MODE=torn  the same, after half of the bytes if it is a write
 *   FAULT_MODE=full  from this operation on, whatever needs space fails as on a full disk
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long operations;
static const char *mode = "";
static long at;

__attribute__((constructor)) static void start(void) {
    const char *number = getenv("FAULT_AT");
    mode = getenv("FAULT_MODE") ? getenv("FAULT_MODE") : "";
    at = number ? atol(number) : 0;
}

static int is(const char *name) { return strcmp(mode, name) == 0; }

/* Whether the operation must fail, errno set; `*half` where it must be a torn write. */
static int fails(const char *kind, const char *path, int needs_space, int *half) {
    long number = atomic_fetch_add(&operations, 1);
    if (is("log")) {
        dprintf(2, "%s %s\n", kind, path);
    } else if (is("full") && number >= at && needs_space) {
        errno = ENOSPC;
        return 1;
    } else if (number == at && is("torn") && half) {
        *half = 1;
    } else if (number == at && (is("kill") || is("torn"))) {
        kill(getpid(), SIGKILL);
    }
    return 0;
}

/* The path of an open file; empty for pipes, sockets and the standard streams. */
static const char *path_of(int fd) {
    static __thread char path[4096];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = fd > 2 ? readlink(link, path, sizeof path - 1) : 0;
    path[length > 0 && path[0] == '/' ? length : 0] = 0;
    return path;
}

#define REAL(name)                                \
    static __typeof__(&name) real;                \
    if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    const char *path = path_of(fd);
    int half = 0;
    if (path[0] && fails("write", path, 1, &half)) return -1;
    if (half) {
        real(fd, bytes, count / 2);
        kill(getpid(), SIGKILL);
    }
    return real(fd, bytes, count);
}

#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                       \
        REAL(name);                                                                    \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        int permissions = flags & O_CREAT ? va_arg(rest, int) : 0;                     \
        va_end(rest);                                                                  \
        if (flags & (O_CREAT | O_TRUNC) && fails("create", path, 1, NULL)) return -1;  \
        return real(path, flags, permissions);                                         \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t permissions) {
    REAL(mkdir);
    int there = access(path, F_OK) == 0; /* answered before space is looked for */
    return fails("mkdir", path, !there, NULL) ? -1 : real(path, permissions);
}

int fsync(int fd) {
    REAL(fsync);
    return fails("fsync", path_of(fd), 0, NULL) ? -1 : real(fd);
}

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    return fails("truncate", path_of(fd), 0, NULL) ? -1 : real(fd, length);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return fails("rename", to, 0, NULL) ? -1 : real(from, to);
}

int unlink(const char *path) {
    REAL(unlink);
    return fails("unlink", path, 0, NULL) ? -1 : real(path);
}

int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    return fails("unlink", path, 0, NULL) ? -1 : real(dir, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir);
    return fails("rmdir", path, 0, NULL) ? -1 : real(path);
}
