/* A file system that fails on purpose: loaded with LD_PRELOAD, asleep until `faults_arm` is called.

   Every call of the C library that changes files below a folder is a step, and steps are counted. At the Nth step the
   process kills itself with SIGKILL (before it, or in the middle of a write), or the call fails with an errno. With a
   trace, what was done is written down with its data, so that `power.py` can take some of it back. With a number for
   chance, the time of day stands still and random bytes are those of that number: what does the same leaves the same.

   Python, SQLite and torch all come through here: none of them makes system calls of its own. What is written through
   mmap is not seen; that is SQLite's -shm alone, which is made anew by whoever opens a database first.  */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PASS, KILL, TEAR, FAIL };                                        /* what happens at the Nth step */
enum { OPEN = 1, WRITE = 2, SYNC = 4, NAME = 8, SIZE = 16, SEND = 32 }; /* kinds of steps */

static struct {
    char root[PATH_MAX];
    size_t length;
    int armed, action, error, kinds, persists, syncs, trace;
    long nth, now;
    uint64_t chance;      /* 0: the system's */
    volatile long *steps; /* shared with the process that looks on */
} plan = {.trace = -1};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Begin: steps of `kinds` below `root` are counted in `steps`; `action` happens at the `nth` (from 1), and with
   `persists` at all after it. Without `syncs` nothing waits for the disk, which a process that dies does not need.
   With a `chance` it is `now`, in seconds, and stays so.  */
void faults_arm(const char *root, int action, long nth, int error, int kinds, int persists, int syncs, int trace,
                long chance, long now, long *steps) {
    snprintf(plan.root, sizeof plan.root, "%s/", root);
    plan.length = strlen(plan.root);
    plan.action = action, plan.nth = nth, plan.error = error, plan.kinds = kinds, plan.persists = persists;
    plan.syncs = syncs, plan.trace = trace, plan.steps = steps;
    plan.chance = (uint64_t)chance << 32, plan.now = now;
    *steps = 0;
    plan.armed = 1;
}

void faults_disarm(void) { plan.armed = 0; }

static int is_below(const char *path) {
    return !strncmp(path, plan.root, plan.length) ||
           (strlen(path) == plan.length - 1 && !strncmp(path, plan.root, plan.length - 1));
}

static int path_of_file(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int path_of_name(int folder, const char *name, char *path) {
    char base[PATH_MAX];
    if (name[0] == '/') return snprintf(path, PATH_MAX, "%s", name) < PATH_MAX;
    if (folder == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of_file(folder, base)) return 0;
    return snprintf(path, PATH_MAX, "%s/%s", base, name) < PATH_MAX;
}

/* Called with the lock held: what becomes of this step. FAIL has set errno; TEAR is for writes alone.  */
static int step(int kind) {
    if (!(kind & plan.kinds)) return PASS;
    long nth = ++*plan.steps;
    if (plan.action == PASS || nth < plan.nth || (nth > plan.nth && !plan.persists)) return PASS;
    if (plan.action == FAIL) {
        errno = plan.error;
        return FAIL;
    }
    if (plan.action == TEAR && kind == WRITE) return TEAR;
    raise(SIGKILL);
    return PASS;
}

static void put(const void *data, size_t size) {
    for (const char *at = data; size > 0;) {
        long done = syscall(SYS_write, plan.trace, at, size);
        if (done <= 0) abort();
        at += done, size -= (size_t)done;
    }
}

static void trace(char kind, uint64_t inode, uint64_t offset, const char *path, const char *other, const void *data,
                  uint64_t size) {
    if (plan.trace < 0) return;
    int kept = errno;
    uint16_t lengths[2] = {(uint16_t)strlen(path), (uint16_t)strlen(other)};
    put(&kind, 1), put(&inode, 8), put(&offset, 8), put(&size, 8), put(lengths, 4);
    put(path, lengths[0]), put(other, lengths[1]), put(data, size);
    errno = kept;
}

static uint64_t inode_of(int file) {
    struct stat status;
    return fstat(file, &status) ? 0 : status.st_ino;
}

static uint64_t inode_at(const char *path) {
    struct stat status;
    return lstat(path, &status) ? 0 : status.st_ino;
}

#define REAL(result, name, ...)                                   \
    static result (*real)(__VA_ARGS__);                           \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name);

#define STEP_OR_FAIL(kind)               \
    if (step(kind) == FAIL) {            \
        pthread_mutex_unlock(&lock);     \
        return -1;                       \
    }

/* -- time and chance ----------------------------------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *)
    if (!plan.armed || !plan.chance || clock != CLOCK_REALTIME) return real(clock, time);
    *time = (struct timespec){.tv_sec = plan.now};
    return 0;
}

/* SplitMix64.  */
static uint64_t drawn(void) {
    uint64_t z = __atomic_add_fetch(&plan.chance, 0x9e3779b97f4a7c15, __ATOMIC_RELAXED);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

ssize_t getrandom(void *data, size_t size, unsigned flags) {
    REAL(ssize_t, "getrandom", void *, size_t, unsigned)
    if (!plan.armed || !plan.chance) return real(data, size, flags);
    for (size_t at = 0; at < size; at += 8) {
        uint64_t eight = drawn();
        memcpy((char *)data + at, &eight, size - at < 8 ? size - at : 8);
    }
    return (ssize_t)size;
}

/* What SQLite reads instead of /dev/urandom.  */
static int file_of_chance(void) {
    char some[256];
    int file = memfd_create("chance", MFD_CLOEXEC);
    if (getrandom(some, sizeof some, 0) < 0 || syscall(SYS_pwrite64, file, some, sizeof some, 0) < 0) abort();
    return file;
}

/* -- opening ------------------------------------------------------------------------------------------------------- */

static int opened(int (*real)(int, const char *, int, ...), int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int changes = flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR);
    if (plan.armed && plan.chance && !strcmp(name, "/dev/urandom")) return file_of_chance();
    if (!plan.armed || !changes || !path_of_name(folder, name, path) || !is_below(path))
        return real(folder, name, flags, mode);
    pthread_mutex_lock(&lock);
    STEP_OR_FAIL(OPEN)
    int is_new = (flags & O_CREAT) && access(path, F_OK) != 0;
    int file = real(folder, name, flags, mode);
    if (file >= 0 && (flags & O_TMPFILE) != O_TMPFILE) {
        if (is_new) trace('c', inode_of(file), 0, path, "", "", 0);
        else if (flags & O_TRUNC) trace('t', inode_of(file), 0, path, "", "", 0);
    }
    pthread_mutex_unlock(&lock);
    return file;
}

#define MODE                                                      \
    mode_t mode = 0;                                              \
    if (flags & (O_CREAT | O_TMPFILE)) {                          \
        va_list rest;                                             \
        va_start(rest, flags);                                    \
        mode = va_arg(rest, mode_t);                              \
        va_end(rest);                                             \
    }

#define OPENAT(function)                                                   \
    int function(int folder, const char *name, int flags, ...) {           \
        MODE REAL(int, "openat64", int, const char *, int, ...)            \
        return opened(real, folder, name, flags, mode);                    \
    }
#define OPEN_HERE(function)                                                \
    int function(const char *name, int flags, ...) {                       \
        MODE REAL(int, "openat64", int, const char *, int, ...)            \
        return opened(real, AT_FDCWD, name, flags, mode);                  \
    }
OPENAT(openat)
OPENAT(openat64)
OPEN_HERE(open)
OPEN_HERE(open64)

/* -- content ------------------------------------------------------------------------------------------------------- */

/* What a file is to us: a step's kind, or 0 if it is nobody's business.  */
static int watched(int file, int kind, char *path) {
    if (!plan.armed || !path_of_file(file, path)) return 0;
    if (is_below(path)) return kind;
    return (plan.kinds & SEND) && kind == WRITE && !strncmp(path, "socket:", 7) ? SEND : 0;
}

static ssize_t written(ssize_t (*real)(int, const void *, size_t, off_t), int file, const void *data, size_t size,
                       off_t offset) {
    char path[PATH_MAX];
    int kind = watched(file, WRITE, path);
    if (!kind) return real(file, data, size, offset);
    pthread_mutex_lock(&lock);
    int fate = step(kind);
    if (fate == FAIL) {
        pthread_mutex_unlock(&lock);
        return -1;
    }
    if (offset < 0 && kind == WRITE && plan.trace >= 0) {
        offset = lseek(file, 0, fcntl(file, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
        ssize_t done = real(file, data, size, -1);
        if (done > 0) trace('w', inode_of(file), (uint64_t)offset, path, "", data, (uint64_t)done);
        pthread_mutex_unlock(&lock);
        return done;
    }
    ssize_t done = real(file, data, fate == TEAR ? size / 2 : size, offset);
    if (fate == TEAR) raise(SIGKILL);
    if (done > 0 && kind == WRITE) trace('w', inode_of(file), (uint64_t)offset, path, "", data, (uint64_t)done);
    pthread_mutex_unlock(&lock);
    return done;
}

static ssize_t plain_write(int file, const void *data, size_t size, off_t offset) {
    REAL(ssize_t, "write", int, const void *, size_t)
    (void)offset;
    return real(file, data, size);
}
ssize_t write(int file, const void *data, size_t size) { return written(plain_write, file, data, size, -1); }

static ssize_t plain_pwrite(int file, const void *data, size_t size, off_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t)
    return real(file, data, size, offset);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
    return written(plain_pwrite, file, data, size, offset);
}
ssize_t pwrite64(int file, const void *data, size_t size, off_t offset) {
    return written(plain_pwrite, file, data, size, offset);
}

/* One piece after another, as the system may do it as well.  */
ssize_t writev(int file, const struct iovec *pieces, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int)
    char path[PATH_MAX];
    if (!watched(file, WRITE, path)) return real(file, pieces, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = write(file, pieces[i].iov_base, pieces[i].iov_len);
        if (done < 0) return total ? total : -1;
        total += done;
        if ((size_t)done < pieces[i].iov_len) break;
    }
    return total;
}

/* Who is refused writes by hand instead, so that nothing is written unseen.  */
ssize_t sendfile64(int to, int from, off_t *offset, size_t size) {
    REAL(ssize_t, "sendfile64", int, int, off_t *, size_t)
    char path[PATH_MAX];
    if (!watched(to, WRITE, path)) return real(to, from, offset, size);
    errno = EINVAL;
    return -1;
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) { return sendfile64(to, from, offset, size); }
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *there, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned)
    char path[PATH_MAX];
    if (!watched(to, WRITE, path)) return real(from, at, to, there, size, flags);
    errno = EXDEV;
    return -1;
}
int fallocate64(int file, int mode, off_t offset, off_t size) {
    REAL(int, "fallocate64", int, int, off_t, off_t)
    char path[PATH_MAX];
    if (!watched(file, SIZE, path)) return real(file, mode, offset, size);
    errno = EOPNOTSUPP;
    return -1;
}
int fallocate(int file, int mode, off_t offset, off_t size) { return fallocate64(file, mode, offset, size); }
int posix_fallocate64(int file, off_t offset, off_t size) {
    REAL(int, "posix_fallocate64", int, off_t, off_t)
    char path[PATH_MAX];
    return watched(file, SIZE, path) ? EOPNOTSUPP : real(file, offset, size);
}
int posix_fallocate(int file, off_t offset, off_t size) { return posix_fallocate64(file, offset, size); }

ssize_t send(int file, const void *data, size_t size, int flags) {
    REAL(ssize_t, "send", int, const void *, size_t, int)
    if (plan.armed && (plan.kinds & SEND)) {
        pthread_mutex_lock(&lock);
        STEP_OR_FAIL(SEND)
        pthread_mutex_unlock(&lock);
    }
    return real(file, data, size, flags);
}

int ftruncate64(int file, off_t size) {
    REAL(int, "ftruncate64", int, off_t)
    char path[PATH_MAX];
    if (!watched(file, SIZE, path)) return real(file, size);
    pthread_mutex_lock(&lock);
    STEP_OR_FAIL(SIZE)
    int done = real(file, size);
    if (!done) trace('t', inode_of(file), (uint64_t)size, path, "", "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

static int synced(int (*real)(int), int file) {
    char path[PATH_MAX];
    if (!watched(file, SYNC, path)) return real(file);
    struct stat status;
    pthread_mutex_lock(&lock);
    int failed = step(SYNC) == FAIL, why = errno;
    int known = !fstat(file, &status);
    char kind = known && S_ISDIR(status.st_mode) ? 'd' : 's';
    trace(failed ? (kind == 'd' ? 'D' : 'S') : kind, known ? status.st_ino : 0, 0, path, "", "", 0);
    int done = failed ? -1 : plan.syncs ? real(file) : 0;
    pthread_mutex_unlock(&lock);
    if (failed) errno = why;
    return done;
}
int fsync(int file) {
    REAL(int, "fsync", int)
    return synced(real, file);
}
int fdatasync(int file) {
    REAL(int, "fdatasync", int)
    return synced(real, file);
}

/* -- names --------------------------------------------------------------------------------------------------------- */

/* A call on one name, written down as `kind` if it comes about.  */
#define ON_NAME(kind, folder, name, call)                                          \
    char path[PATH_MAX];                                                           \
    if (!plan.armed || !path_of_name(folder, name, path) || !is_below(path)) return call; \
    pthread_mutex_lock(&lock);                                                     \
    STEP_OR_FAIL(NAME)                                                             \
    uint64_t inode = inode_at(path);                                               \
    int done = call;                                                               \
    if (!done) trace(kind, inode, 0, path, "", "", 0);                             \
    pthread_mutex_unlock(&lock);                                                   \
    return done;

int unlink(const char *name) {
    REAL(int, "unlink", const char *)
    ON_NAME('u', AT_FDCWD, name, real(name))
}
int unlinkat(int folder, const char *name, int flags) {
    REAL(int, "unlinkat", int, const char *, int)
    ON_NAME(flags & AT_REMOVEDIR ? 'x' : 'u', folder, name, real(folder, name, flags))
}
int rmdir(const char *name) {
    REAL(int, "rmdir", const char *)
    ON_NAME('x', AT_FDCWD, name, real(name))
}
int mkdir(const char *name, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t)
    ON_NAME('m', AT_FDCWD, name, real(name, mode))
}
int mkdirat(int folder, const char *name, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t)
    ON_NAME('m', folder, name, real(folder, name, mode))
}

static int named(char kind, int from, const char *name, int to, const char *other, int (*call)(void *), void *with) {
    char path[PATH_MAX], there[PATH_MAX];
    if (!plan.armed || !path_of_name(from, name, path) || !path_of_name(to, other, there) ||
        (!is_below(path) && !is_below(there)))
        return call(with);
    pthread_mutex_lock(&lock);
    STEP_OR_FAIL(NAME)
    uint64_t inode = inode_at(path);
    int done = call(with);
    if (!done) trace(kind, inode, 0, path, there, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}

struct two_names {
    int from, to;
    const char *name, *other;
    unsigned flags;
};
static int real_rename(void *with) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned)
    struct two_names *names = with;
    return real(names->from, names->name, names->to, names->other, names->flags);
}
static int real_link(void *with) {
    REAL(int, "linkat", int, const char *, int, const char *, int)
    struct two_names *names = with;
    return real(names->from, names->name, names->to, names->other, (int)names->flags);
}
int renameat2(int from, const char *name, int to, const char *other, unsigned flags) {
    struct two_names names = {from, to, name, other, flags};
    return named('r', from, name, to, other, real_rename, &names);
}
int renameat(int from, const char *name, int to, const char *other) { return renameat2(from, name, to, other, 0); }
int rename(const char *name, const char *other) { return renameat2(AT_FDCWD, name, AT_FDCWD, other, 0); }
int linkat(int from, const char *name, int to, const char *other, int flags) {
    struct two_names names = {from, to, name, other, (unsigned)flags};
    return named('l', from, name, to, other, real_link, &names);
}
int link(const char *name, const char *other) { return linkat(AT_FDCWD, name, AT_FDCWD, other, 0); }

int fchmod(int file, mode_t mode) {
    REAL(int, "fchmod", int, mode_t)
    char path[PATH_MAX];
    if (!watched(file, NAME, path)) return real(file, mode);
    pthread_mutex_lock(&lock);
    STEP_OR_FAIL(NAME)
    int done = real(file, mode);
    pthread_mutex_unlock(&lock);
    return done;
}
