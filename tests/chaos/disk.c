/* A library for LD_PRELOAD that sees every change to the files under one folder.

   chaos_record(root, journal) writes each of them, in the order in which they happen, to the journal:
   one record is a `struct record`, then the two names, then the data. disk.py reads it.
   chaos_limit(root, bytes) is a disk that has room for so many bytes more.
   A process may also be started with CHAOS_ROOT and CHAOS_JOURNAL in its environment. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct record {
    char what;               /* C create, W write, T length, S sync, R rename, L link, Y symlink, U unlink, M mkdir */
    char is_folder;          /* of what is synced or removed */
    uint16_t name, other;    /* lengths of the names that follow */
    uint32_t data;           /* length of the data behind them */
    uint64_t inode;
    int64_t at;              /* the offset of a write, or a length */
} __attribute__((packed));

static char root[PATH_MAX];
static size_t root_length;
static int journal = -1;
static long room = -1;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

#define LOCKED(result, call) \
    pthread_mutex_lock(&one_at_a_time); \
    result = call

static int set_root(const char *path) {
    if (!realpath(path, root)) return -1;
    root_length = strlen(root);
    return 0;
}

void chaos_record(const char *folder, const char *path) {
    if (set_root(folder)) abort();
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    journal = fcntl(fd, F_DUPFD_CLOEXEC, 500);
    syscall(SYS_close, fd);
    if (journal < 0) abort();
}

void chaos_limit(const char *folder, long bytes) {
    if (set_root(folder)) abort();
    room = bytes;
}

__attribute__((constructor)) static void from_environment(void) {
    const char *folder = getenv("CHAOS_ROOT"), *path = getenv("CHAOS_JOURNAL");
    if (folder && path) chaos_record(folder, path);
}

static void note(char what, int is_folder, uint64_t inode, int64_t at, const char *name, const char *other,
                 const void *data, size_t size) {
    struct record r = {what, is_folder, name ? strlen(name) : 0, other ? strlen(other) : 0, size, inode, at};
    struct iovec parts[] = {{&r, sizeof r}, {(void *)name, r.name}, {(void *)other, r.other}, {(void *)data, size}};
    int kept = errno;
    ssize_t total = sizeof r + r.name + r.other + size;
    if (syscall(SYS_writev, journal, parts, 4) != total) abort();
    errno = kept;
}

/* The place that a name has in its folder, with no link on the way there; NULL when it is not under the root. */
static const char *place(int dirfd, const char *path, char *out) {
    char joined[2 * PATH_MAX], folder[PATH_MAX];
    if (journal < 0 || !path) return NULL;
    if (path[0] == '/' || dirfd == AT_FDCWD) {
        snprintf(joined, sizeof joined, "%s", path);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        ssize_t n = readlink(link, folder, sizeof folder - 1);
        if (n < 0) return NULL;
        folder[n] = 0;
        snprintf(joined, sizeof joined, "%s/%s", folder, path);
    }
    size_t end = strlen(joined);
    while (end > 1 && joined[end - 1] == '/') joined[--end] = 0;
    char *slash = strrchr(joined, '/');
    const char *last = slash ? slash + 1 : joined;
    if (slash) *slash = 0;
    if (!realpath(slash ? (slash == joined ? "/" : joined) : ".", folder)) return NULL;
    if ((size_t)snprintf(out, PATH_MAX, "%s/%s", folder, last) >= PATH_MAX) return NULL;
    return !strncmp(out, root, root_length) && out[root_length] == '/' ? out + root_length + 1 : NULL;
}

static uint64_t inode_of(int fd) {
    struct stat is;
    return syscall(SYS_fstat, fd, &is) == 0 && S_ISREG(is.st_mode) ? is.st_ino : 0;
}

static int is_under_root(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return !strncmp(path, root, root_length) && path[root_length] == '/';
}

/* How much of a write there is room for; -1 and ENOSPC when there is none. */
static ssize_t fits(int fd, size_t size) {
    if (room < 0 || !size || !inode_of(fd) || !is_under_root(fd)) return size;
    if (!room) { errno = ENOSPC; return -1; }
    size = size < (size_t)room ? size : (size_t)room;
    room -= size;
    return size;
}

/* After a write: what the file holds there now. */
static void wrote(int fd, int64_t at, const void *data, ssize_t size) {
    uint64_t inode;
    if (journal < 0 || size <= 0 || fd == journal || !(inode = inode_of(fd))) return;
    if (at < 0) at = lseek(fd, 0, SEEK_CUR) - size;
    note('W', 0, inode, at, NULL, NULL, data, size);
}

static void copied(int fd, int64_t at, ssize_t size) {
    char link[64], *data;
    if (journal < 0 || size <= 0 || !(data = malloc(size))) return;
    if (at < 0) at = lseek(fd, 0, SEEK_CUR) - size;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int again = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
    if (syscall(SYS_pread64, again, data, size, at) == size) wrote(fd, at, data, size);
    syscall(SYS_close, again);
    free(data);
}

static int opened(int dirfd, const char *path, int flags, mode_t mode) {
    char out[PATH_MAX];
    if (journal < 0 || !(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE)
        return syscall(SYS_openat, dirfd, path, flags, mode);
    pthread_mutex_lock(&one_at_a_time);
    struct stat is;
    int was_there = fstatat(dirfd, path, &is, 0) == 0;
    int fd = syscall(SYS_openat, dirfd, path, flags, mode);
    uint64_t inode = fd < 0 ? 0 : inode_of(fd);
    const char *name = inode ? place(dirfd, path, out) : NULL;
    if (name && !was_there) note('C', 0, inode, 0, name, NULL, NULL, 0);
    if (inode && was_there && flags & O_TRUNC) note('T', 0, inode, 0, NULL, NULL, NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, int); va_end(more); }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int dirfd, const char *path, int flags, ...) { MODE(flags) return opened(dirfd, path, flags, mode); }
int openat64(int dirfd, const char *path, int flags, ...) { MODE(flags) return opened(dirfd, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }

#define WRITES(call, at) \
    pthread_mutex_lock(&one_at_a_time); \
    ssize_t done = fits(fd, size); \
    if (done > 0 || !size) { size = done; done = call; } \
    wrote(fd, at, data, done); \
    pthread_mutex_unlock(&one_at_a_time); \
    return done;
ssize_t write(int fd, const void *data, size_t size) {
    if (journal < 0 && room < 0) return syscall(SYS_write, fd, data, size);
    if (!inode_of(fd)) return syscall(SYS_write, fd, data, size);  /* it may block, and nobody waits for it here */
    WRITES(syscall(SYS_write, fd, data, size), -1)
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { WRITES(syscall(SYS_pwrite64, fd, data, size, at), at) }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return pwrite(fd, data, size, at); }

static ssize_t gathered(int fd, const struct iovec *parts, int count, int64_t at) {
    size_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    char *data = malloc(size + 1), *end = data;
    for (int i = 0; i < count; i++) end = mempcpy(end, parts[i].iov_base, parts[i].iov_len);
    ssize_t done = at < 0 ? write(fd, data, size) : pwrite(fd, data, size, at);
    free(data);
    return done;
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return inode_of(fd) ? gathered(fd, parts, count, -1) : syscall(SYS_writev, fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return gathered(fd, parts, count, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return gathered(fd, parts, count, at); }
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    return gathered(fd, parts, count, at);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags) {
    return gathered(fd, parts, count, at);
}

ssize_t sendfile(int fd, int from, off_t *start, size_t size) {
    if (!inode_of(fd)) return syscall(SYS_sendfile, fd, from, start, size);
    ssize_t done;
    LOCKED(done, syscall(SYS_sendfile, fd, from, start, size));
    copied(fd, -1, done);
    pthread_mutex_unlock(&one_at_a_time);
    return done;
}
ssize_t sendfile64(int fd, int from, off64_t *start, size_t size) { return sendfile(fd, from, start, size); }
ssize_t copy_file_range(int from, off64_t *start, int fd, off64_t *to, size_t size, unsigned flags) {
    int64_t at = to ? *to : -1;
    ssize_t done;
    LOCKED(done, syscall(SYS_copy_file_range, from, start, fd, to, size, flags));
    copied(fd, at, done);
    pthread_mutex_unlock(&one_at_a_time);
    return done;
}

static void resized(int fd) {
    struct stat is;
    if (journal >= 0 && inode_of(fd) && fstat(fd, &is) == 0) note('T', 0, is.st_ino, is.st_size, NULL, NULL, NULL, 0);
}
int ftruncate(int fd, off_t length) {
    int failed;
    LOCKED(failed, syscall(SYS_ftruncate, fd, length));
    if (!failed) resized(fd);
    pthread_mutex_unlock(&one_at_a_time);
    return failed;
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }
int truncate(const char *path, off_t length) {
    int fd = open(path, O_WRONLY | O_CLOEXEC), failed = fd < 0 ? -1 : ftruncate(fd, length);
    if (fd >= 0) syscall(SYS_close, fd);
    return failed;
}
int truncate64(const char *path, off64_t length) { return truncate(path, length); }
int posix_fallocate(int fd, off_t at, off_t length) {
    int failed = 0;
    LOCKED(failed, syscall(SYS_fallocate, fd, 0, at, length) ? errno : 0);
    if (!failed) resized(fd);
    pthread_mutex_unlock(&one_at_a_time);
    return failed;
}
int posix_fallocate64(int fd, off64_t at, off64_t length) { return posix_fallocate(fd, at, length); }

static int synced(int fd, long number) {
    struct stat is;
    char link[64], path[PATH_MAX];
    int failed;
    LOCKED(failed, syscall(number, fd));
    if (!failed && journal >= 0 && fstat(fd, &is) == 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof path - 1);
        path[n < 0 ? 0 : n] = 0;
        int inside = !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
        const char *name = path + root_length + (path[root_length] == '/');
        if (S_ISREG(is.st_mode)) note('S', 0, is.st_ino, 0, NULL, NULL, NULL, 0);
        else if (inside) note('S', 1, is.st_ino, 0, name, NULL, NULL, 0);
    }
    pthread_mutex_unlock(&one_at_a_time);
    return failed;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* A name that leaves or enters the root is noted with an empty one for what is outside. */
static int named(char what, int is_folder, int from, const char *name, int to, const char *other, int failed) {
    char a[PATH_MAX], b[PATH_MAX];
    const char *first = failed ? NULL : place(from, name, a), *second = failed ? NULL : place(to, other, b);
    struct stat is = {0};
    if (what == 'Y') first = second ? name : NULL;
    if (second && fstatat(to, other, &is, AT_SYMLINK_NOFOLLOW)) is.st_ino = 0;
    if (first || second) note(what, is_folder, is.st_ino, 0, first ? first : "", second ? second : "", NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    return failed;
}
#define NAMING(what, is_folder, from, name, to, other, call) \
    int failed; \
    LOCKED(failed, call); \
    return named(what, is_folder, from, name, to, other, failed);
int renameat2(int from, const char *a, int to, const char *b, unsigned flags) {
    NAMING('R', 0, from, a, to, b, syscall(SYS_renameat2, from, a, to, b, flags))
}
int renameat(int from, const char *a, int to, const char *b) { return renameat2(from, a, to, b, 0); }
int rename(const char *a, const char *b) { return renameat2(AT_FDCWD, a, AT_FDCWD, b, 0); }
int linkat(int from, const char *a, int to, const char *b, int flags) {
    NAMING('L', 0, from, a, to, b, syscall(SYS_linkat, from, a, to, b, flags))
}
int link(const char *a, const char *b) { return linkat(AT_FDCWD, a, AT_FDCWD, b, 0); }
int symlinkat(const char *a, int to, const char *b) {
    NAMING('Y', 0, AT_FDCWD, a, to, b, syscall(SYS_symlinkat, a, to, b))
}
int symlink(const char *a, const char *b) { return symlinkat(a, AT_FDCWD, b); }
int unlinkat(int from, const char *a, int flags) {
    NAMING('U', !!(flags & AT_REMOVEDIR), from, a, from, NULL, syscall(SYS_unlinkat, from, a, flags))
}
int unlink(const char *a) { return unlinkat(AT_FDCWD, a, 0); }
int rmdir(const char *a) { return unlinkat(AT_FDCWD, a, AT_REMOVEDIR); }
int mkdirat(int from, const char *a, mode_t mode) {
    NAMING('M', 1, from, a, from, NULL, syscall(SYS_mkdirat, from, a, mode))
}
int mkdir(const char *a, mode_t mode) { return mkdirat(AT_FDCWD, a, mode); }
