/* Lets file operations below a folder fail as a broken, full or forbidden disk does.

   Preloaded, it stands between a program and the C library, below Python and every library in C++. The operations are
   counted while it is armed; the one with a given number fails, or flips a bit of what it reads. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { READ = 1, WRITE = 2, CREATE = 4, REMOVE = 8 };

static char root[PATH_MAX];
static char happened[PATH_MAX + 100];
static int armed, kinds, torn, lasts, flips;
static long first;
static unsigned pick;
static atomic_long seen;
static atomic_int failing_kind, failing_error;

/* Starts to count operations of some kinds below a folder, and lets the one with the number `number` fail, or none if
   that is 0. With `after`, all later ones of its kind fail too. With `half`, half of a write is done before. With
   `flip`, a read gives data with a flipped bit instead. `choice` selects the error, or the bit. */
void faults_arm(const char *folder, int which, long number, unsigned choice, int after, int half, int flip) {
    snprintf(root, sizeof root, "%s", folder);
    happened[0] = 0;
    kinds = which;
    first = number;
    pick = choice;
    lasts = after;
    torn = half;
    flips = flip;
    seen = 0;
    failing_kind = failing_error = 0;
    armed = 1;
}

/* Ends it; returns the number of operations, or -1 if the chosen one did not come. */
long faults_disarm(void) {
    armed = 0;
    return first && !happened[0] ? -1 : seen;
}

const char *faults_happened(void) { return happened; }

static int error_of(int kind) {
    static const int reads[] = {EIO}, writes[] = {ENOSPC, EDQUOT, EIO}, creates[] = {ENOSPC, EDQUOT, EACCES, EIO},
                     removes[] = {EACCES, EIO};
    switch (kind) {
    case READ: return reads[0];
    case WRITE: return writes[pick % 3];
    case CREATE: return creates[pick % 4];
    default: return removes[pick % 2];
    }
}

/* Returns whether the operation is the chosen one. */
static int is_chosen(int kind, const char *path, const char *name) {
    size_t size = strlen(root);
    if (!armed || !(kind & kinds) || strncmp(path, root, size) || (path[size] && path[size] != '/')) return 0;
    if (atomic_fetch_add(&seen, 1) + 1 != first) return 0;
    snprintf(happened, sizeof happened, "%s of %s: %s", name, path + size,
             flips ? "flipped bit" : strerrorname_np(error_of(kind)));
    return 1;
}

/* Returns the error of an operation, or 0. */
static int fault(int kind, const char *path, const char *name) {
    int error = 0;
    if (flips) return 0;
    if (is_chosen(kind, path, name)) {
        error = error_of(kind);
        if (lasts) {
            failing_error = error;
            failing_kind = kind;
        }
    } else if (armed && failing_kind == kind && !strncmp(path, root, strlen(root))) {
        error = failing_error;
    }
    if (error) errno = error;
    return error;
}

static const char *path_of(int descriptor, char *path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return path;
}

static const char *locate(int folder, const char *name, char *path) {
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return path;
    }
    if (folder != AT_FDCWD) path_of(folder, path);
    else if (!getcwd(path, PATH_MAX)) path[0] = 0;
    size_t size = strlen(path);
    snprintf(path + size, PATH_MAX - size, "/%s", name);
    return path;
}

#define NEXT(type, name, ...)                                                                                          \
    char path[PATH_MAX];                                                                                               \
    static type (*next)(__VA_ARGS__);                                                                                  \
    if (!next) next = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name);                                                   \
    (void)path
#define FAIL(kind, where, name) (armed && fault(kind, where, name))

/* Files are opened. */
static int opens(int flags) { return flags & O_CREAT ? CREATE : flags & (O_WRONLY | O_RDWR) ? WRITE : READ; }
static mode_t mode_of(int flags, va_list list) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; }

#define OPEN(name)                                                                                                     \
    int name(const char *file, int flags, ...) {                                                                       \
        NEXT(int, name, const char *, int, ...);                                                                       \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = mode_of(flags, list);                                                                            \
        va_end(list);                                                                                                  \
        if (FAIL(opens(flags), locate(AT_FDCWD, file, path), "open")) return -1;                                       \
        return next(file, flags, mode);                                                                                \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *file, int flags, ...) {                                                           \
        NEXT(int, name, int, const char *, int, ...);                                                                  \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = mode_of(flags, list);                                                                            \
        va_end(list);                                                                                                  \
        if (FAIL(opens(flags), locate(folder, file, path), "open")) return -1;                                         \
        return next(folder, file, flags, mode);                                                                        \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                                                    \
    FILE *name(const char *file, const char *mode) {                                                                   \
        NEXT(FILE *, name, const char *, const char *);                                                                \
        int kind = mode[0] == 'r' && !strchr(mode, '+') ? READ : CREATE;                                               \
        if (FAIL(kind, locate(AT_FDCWD, file, path), "open")) return NULL;                                             \
        return next(file, mode);                                                                                       \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* Contents are written. */
static size_t half_of(size_t size, int descriptor) {
    char path[PATH_MAX];
    if (!armed || !torn || flips || size < 2 || seen + 1 != first || !(kinds & WRITE)) return 0;
    const char *where = path_of(descriptor, path);
    if (strncmp(where, root, strlen(root))) return 0;
    /* The system says how much it has written, and fails when the rest comes. */
    torn = 0, first += 1;
    atomic_fetch_add(&seen, 1);
    return size / 2;
}

ssize_t write(int file, const void *data, size_t size) {
    NEXT(ssize_t, write, int, const void *, size_t);
    size_t half = half_of(size, file);
    if (half) return next(file, data, half);
    if (FAIL(WRITE, path_of(file, path), "write")) return -1;
    return next(file, data, size);
}

#define PWRITE(name, type)                                                                                             \
    ssize_t name(int file, const void *data, size_t size, type place) {                                                \
        NEXT(ssize_t, name, int, const void *, size_t, type);                                                          \
        size_t half = half_of(size, file);                                                                             \
        if (half) return next(file, data, half, place);                                                                \
        if (FAIL(WRITE, path_of(file, path), "pwrite")) return -1;                                                     \
        return next(file, data, size, place);                                                                          \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count) {
    NEXT(ssize_t, writev, int, const struct iovec *, int);
    if (FAIL(WRITE, path_of(file, path), "writev")) return -1;
    return next(file, parts, count);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    NEXT(size_t, fwrite, const void *, size_t, size_t, FILE *);
    if (FAIL(WRITE, path_of(fileno(file), path), "fwrite")) return 0;
    return next(data, size, count, file);
}

int fflush(FILE *file) {
    NEXT(int, fflush, FILE *);
    if (file && FAIL(WRITE, path_of(fileno(file), path), "fflush")) {
        __fpurge(file);
        return EOF;
    }
    return next(file);
}

int fclose(FILE *file) {
    NEXT(int, fclose, FILE *);
    if (__fpending(file) && FAIL(WRITE, path_of(fileno(file), path), "fclose")) {
        int error = errno;
        __fpurge(file);
        next(file);
        errno = error;
        return EOF;
    }
    return next(file);
}

ssize_t sendfile(int out, int in, off_t *place, size_t size) {
    NEXT(ssize_t, sendfile, int, int, off_t *, size_t);
    if (FAIL(WRITE, path_of(out, path), "sendfile")) return -1;
    return next(out, in, place, size);
}

#define ON_FILE(name, kind)                                                                                      \
    int name(int file) {                                                                                               \
        NEXT(int, name, int);                                                                                          \
        if (FAIL(kind, path_of(file, path), #name)) return -1;                                                         \
        return next(file);                                                                                             \
    }
ON_FILE(fsync, WRITE)
ON_FILE(fdatasync, WRITE)

#define TRUNCATE(name, type)                                                                                           \
    int name(int file, type size) {                                                                                    \
        NEXT(int, name, int, type);                                                                                    \
        if (FAIL(WRITE, path_of(file, path), "ftruncate")) return -1;                                                  \
        return next(file, size);                                                                                       \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

/* Contents are read. */
static ssize_t flipped(ssize_t size, char *data, int file, const char *name) {
    char path[PATH_MAX];
    /* At the end of a file there is nothing to flip. */
    if (armed && size > 0 && is_chosen(READ, path_of(file, path), name)) data[pick % size] ^= 1 << (pick >> 8) % 8;
    return size;
}

ssize_t read(int file, void *data, size_t size) {
    NEXT(ssize_t, read, int, void *, size_t);
    if (flips) return flipped(next(file, data, size), data, file, "read");
    if (FAIL(READ, path_of(file, path), "read")) return -1;
    return next(file, data, size);
}

#define PREAD(name, type)                                                                                              \
    ssize_t name(int file, void *data, size_t size, type place) {                                                      \
        NEXT(ssize_t, name, int, void *, size_t, type);                                                                \
        if (flips) return flipped(next(file, data, size, place), data, file, "pread");                                 \
        if (FAIL(READ, path_of(file, path), "pread")) return -1;                                                       \
        return next(file, data, size, place);                                                                          \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

/* Names are made and removed. */
#define ON_NAME(name, kind)                                                                                            \
    int name(const char *file) {                                                                                       \
        NEXT(int, name, const char *);                                                                                 \
        if (FAIL(kind, locate(AT_FDCWD, file, path), #name)) return -1;                                                \
        return next(file);                                                                                             \
    }
ON_NAME(unlink, REMOVE)
ON_NAME(rmdir, REMOVE)

int unlinkat(int folder, const char *file, int flags) {
    NEXT(int, unlinkat, int, const char *, int);
    if (FAIL(REMOVE, locate(folder, file, path), "unlink")) return -1;
    return next(folder, file, flags);
}

int mkdir(const char *file, mode_t mode) {
    NEXT(int, mkdir, const char *, mode_t);
    if (FAIL(CREATE, locate(AT_FDCWD, file, path), "mkdir")) return -1;
    return next(file, mode);
}

int mkdirat(int folder, const char *file, mode_t mode) {
    NEXT(int, mkdirat, int, const char *, mode_t);
    if (FAIL(CREATE, locate(folder, file, path), "mkdir")) return -1;
    return next(folder, file, mode);
}

int symlink(const char *to, const char *file) {
    NEXT(int, symlink, const char *, const char *);
    if (FAIL(CREATE, locate(AT_FDCWD, file, path), "symlink")) return -1;
    return next(to, file);
}

int rename(const char *from, const char *to) {
    NEXT(int, rename, const char *, const char *);
    if (FAIL(CREATE, locate(AT_FDCWD, to, path), "rename")) return -1;
    return next(from, to);
}

int renameat(int folder, const char *from, int into, const char *to) {
    NEXT(int, renameat, int, const char *, int, const char *);
    if (FAIL(CREATE, locate(into, to, path), "rename")) return -1;
    return next(folder, from, into, to);
}
