/* Notes what a program writes into databases until it is flushed, so that a test can
   take it back as a power cut would.

   Preloaded before the C library. Of each file below $POWER_FILES that is a database or
   its log, every write since the last fsync is kept in $POWER_NOTES/<name>: place, new
   length, old size of the file, and the old bytes there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct head { int64_t at, length, size, old; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char below[PATH_MAX], notes_in[PATH_MAX];

/* Once, since the environment may change while other threads read it. */
__attribute__((constructor)) static void begin(void) {
    const char *files = getenv("POWER_FILES"), *notes = getenv("POWER_NOTES");
    if (!files || !notes) return;
    snprintf(below, sizeof below, "%s", files);
    snprintf(notes_in, sizeof notes_in, "%s", notes);
}

static int ends(const char *text, const char *end) {
    size_t have = strlen(text), want = strlen(end);
    return have >= want && strcmp(text + have - want, end) == 0;
}

/* The notes of the file behind a descriptor; 0: it is none of ours. */
static int notes_of(int fd, char *path) {
    char link[64], file[PATH_MAX];
    if (!*below) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, file, sizeof file - 1);
    if (length < 0) return 0;
    file[length] = 0;
    if (strncmp(file, below, strlen(below)) != 0) return 0;
    if (!ends(file, ".db") && !ends(file, "-wal") && !ends(file, "-journal")) return 0;
    snprintf(path, PATH_MAX, "%s/%s", notes_in, strrchr(file, '/') + 1);
    return 1;
}

static void fail(const char *what) {
    perror(what);
    abort();
}

static void all(int fd, const void *bytes, size_t length) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (real(fd, bytes, length) != (ssize_t)length) fail("write");
}

/* A descriptor may be for writing only; then it is of no file that SQLite locks, since
   to close another one of such a file gives its locks away. */
static int has_read(int fd, char *bytes, size_t length, off_t at) {
    char own[64];
    if (pread(fd, bytes, length, at) == (ssize_t)length) return 1;
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    int again = open(own, O_RDONLY);
    int is_whole = again >= 0 && pread(again, bytes, length, at) == (ssize_t)length;
    if (again >= 0) close(again);
    return is_whole;
}

static void note(const char *path, int fd, off_t at, size_t length) {
    struct stat now;
    if (fstat(fd, &now) != 0) fail("fstat");
    off_t end = at + (off_t)length < now.st_size ? at + (off_t)length : now.st_size;
    struct head head = {at, (int64_t)length, now.st_size, end > at ? end - at : 0};
    char *old = malloc((size_t)head.old + 1);
    if (!old || !has_read(fd, old, (size_t)head.old, at)) fail("read");
    int notes = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (notes < 0) fail("open");
    all(notes, &head, sizeof head);
    all(notes, old, (size_t)head.old);
    close(notes);
    free(old);
}

/* Other files are none of our business, and may block. */
#define WRAP(type, name, arguments, before, call, after)                             \
    type name arguments {                                                            \
        static type (*real) arguments;                                               \
        char path[PATH_MAX];                                                         \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                   \
        if (!notes_of(fd, path)) return real call;                                   \
        pthread_mutex_lock(&lock);                                                   \
        before;                                                                      \
        type done = real call;                                                       \
        after;                                                                       \
        pthread_mutex_unlock(&lock);                                                 \
        return done;                                                                 \
    }

WRAP(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t at),
     note(path, fd, at, n), (fd, b, n, at), )
WRAP(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t at),
     note(path, fd, at, n), (fd, b, n, at), )
WRAP(ssize_t, write, (int fd, const void *b, size_t n),
     note(path, fd, lseek(fd, 0, SEEK_CUR), n), (fd, b, n), )
WRAP(int, ftruncate, (int fd, off_t n), note(path, fd, n, SSIZE_MAX - n), (fd, n), )
WRAP(int, ftruncate64, (int fd, off64_t n), note(path, fd, n, SSIZE_MAX - n), (fd, n), )
WRAP(int, fsync, (int fd), , (fd), if (done == 0) unlink(path))
WRAP(int, fdatasync, (int fd), , (fd), if (done == 0) unlink(path))
