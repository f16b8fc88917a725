/* Logs what a process does to files below $DISK_ROOT into $DISK_LOG, for power_cut.py. Loaded by LD_PRELOAD.

   A record is a header (struct head), a path, and a second path or the bytes written. Calls and their records are in one
   order over all processes: both happen while the log is locked. What goes around these functions (mmap, sendfile) is
   not seen; power_cut.py replays the whole log and compares, so it would notice. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))
#define FDS 65536

struct head { char kind; char pad[3]; int32_t pid, fd, flags; int64_t offset; uint32_t path, data; };

static int journal = -1;
static char root[PATH_MAX], tracked[FDS];
static size_t root_length;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
  const char *at = getenv("DISK_ROOT"), *log = getenv("DISK_LOG");
  if (!at || !log) return;
  root_length = snprintf(root, sizeof root, "%s/", at);
  journal = REAL(open)(log, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static void lock(void) { pthread_mutex_lock(&mutex); if (journal >= 0) flock(journal, LOCK_EX); }
static void unlock(void) { if (journal >= 0) flock(journal, LOCK_UN); pthread_mutex_unlock(&mutex); }

/* Absolute, without ".." (nobody here uses it); 1 if below the root, or the root. */
static int place(int dir, const char *path, char *out) {
  if (journal < 0 || !path) return 0;
  if (path[0] == '/') snprintf(out, PATH_MAX, "%s", path);
  else {
    char link[64]; ssize_t n;
    if (dir == AT_FDCWD) { if (!getcwd(out, PATH_MAX)) return 0; n = strlen(out); }
    else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
      if ((n = readlink(link, out, PATH_MAX - 1)) < 0) return 0;
    }
    snprintf(out + n, PATH_MAX - n, "/%s", path);
  }
  size_t n = strlen(out);
  while (n > 1 && out[n - 1] == '/') out[--n] = 0;
  return strncmp(out, root, root_length) == 0 || (n == root_length - 1 && strncmp(out, root, n) == 0);
}

static void record(char kind, int fd, int flags, int64_t offset, const char *path, const void *data, size_t size) {
  struct head h = {kind, {0}, getpid(), fd, flags, offset, path ? strlen(path) : 0, size};
  struct iovec parts[3] = {{&h, sizeof h}, {(void *)path, h.path}, {(void *)data, size}};
  if (REAL(writev)(journal, parts, 3) < 0) abort();
}

static int opened(int fd, const char *where, int flags) {
  if (fd >= 0 && fd < FDS) { tracked[fd] = 1; record('O', fd, flags, 0, where, 0, 0); }
  return fd;
}

#define MODE(flags) mode_t mode = 0; \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); }
#define OPEN(name) int name(const char *path, int flags, ...) { \
  MODE(flags) char at[PATH_MAX]; \
  if (!place(AT_FDCWD, path, at)) return REAL(name)(path, flags, mode); \
  lock(); int fd = opened(REAL(name)(path, flags, mode), at, flags); unlock(); return fd; }
#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { \
  MODE(flags) char at[PATH_MAX]; \
  if (!place(dir, path, at)) return REAL(name)(dir, path, flags, mode); \
  lock(); int fd = opened(REAL(name)(dir, path, flags, mode), at, flags); unlock(); return fd; }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

int close(int fd) {
  if (fd < 0 || fd >= FDS || !tracked[fd]) return REAL(close)(fd);
  lock(); tracked[fd] = 0; int r = REAL(close)(fd); record('C', fd, 0, 0, 0, 0, 0); unlock(); return r;
}

#define IS(fd) ((fd) >= 0 && (fd) < FDS && tracked[fd])
ssize_t write(int fd, const void *data, size_t size) {
  if (!IS(fd)) return REAL(write)(fd, data, size);
  lock(); ssize_t n = REAL(write)(fd, data, size);
  if (n > 0) record('W', fd, 0, lseek(fd, 0, SEEK_CUR) - n, 0, data, n);
  unlock(); return n;
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (!IS(fd)) return REAL(writev)(fd, parts, count);
  lock(); ssize_t n = REAL(writev)(fd, parts, count), left = n;
  int64_t at = lseek(fd, 0, SEEK_CUR) - n;
  for (int i = 0; i < count && left > 0; i++) {
    size_t size = (ssize_t)parts[i].iov_len < left ? parts[i].iov_len : (size_t)left;
    record('W', fd, 0, at, 0, parts[i].iov_base, size); at += size; left -= size;
  }
  unlock(); return n;
}
#define PWRITE(name, type) ssize_t name(int fd, const void *data, size_t size, type at) { \
  if (!IS(fd)) return REAL(name)(fd, data, size, at); \
  lock(); ssize_t n = REAL(name)(fd, data, size, at); if (n > 0) record('W', fd, 0, at, 0, data, n); \
  unlock(); return n; }
PWRITE(pwrite, off_t) PWRITE(pwrite64, off64_t)
#define FTRUNCATE(name, type) int name(int fd, type size) { \
  if (!IS(fd)) return REAL(name)(fd, size); \
  lock(); int r = REAL(name)(fd, size); if (!r) record('T', fd, 0, size, 0, 0, 0); unlock(); return r; }
FTRUNCATE(ftruncate, off_t) FTRUNCATE(ftruncate64, off64_t)
#define SYNC(name) int name(int fd) { \
  if (!IS(fd)) return REAL(name)(fd); \
  lock(); int r = REAL(name)(fd); if (!r) record('F', fd, 0, 0, 0, 0, 0); unlock(); return r; }
SYNC(fsync) SYNC(fdatasync)

static int named(char kind, int r, const char *at, const char *to) {
  if (!r) record(kind, -1, 0, 0, at, to, to ? strlen(to) : 0);
  unlock(); return r;
}
int renameat(int from, const char *path, int onto, const char *target) {
  char at[PATH_MAX], to[PATH_MAX];
  int a = place(from, path, at), b = place(onto, target, to);
  if (!a && !b) return REAL(renameat)(from, path, onto, target);
  if (!a || !b) abort(); /* across the border of what is watched */
  lock(); return named('R', REAL(renameat)(from, path, onto, target), at, to);
}
int rename(const char *path, const char *target) { return renameat(AT_FDCWD, path, AT_FDCWD, target); }
#define NAMED(name, kind, parameters, arguments, dir) int name parameters { \
  char at[PATH_MAX]; if (!place(dir, path, at)) return REAL(name) arguments; \
  lock(); return named(kind, REAL(name) arguments, at, 0); }
NAMED(unlink, 'U', (const char *path), (path), AT_FDCWD)
NAMED(rmdir, 'U', (const char *path), (path), AT_FDCWD)
NAMED(unlinkat, 'U', (int dir, const char *path, int flags), (dir, path, flags), dir)
NAMED(mkdir, 'M', (const char *path, mode_t mode), (path, mode), AT_FDCWD)
NAMED(mkdirat, 'M', (int dir, const char *path, mode_t mode), (dir, path, mode), dir)
int linkat(int from, const char *path, int onto, const char *target, int flags) {
  char at[PATH_MAX], to[PATH_MAX];
  int a = place(from, path, at), b = place(onto, target, to);
  if (!a && !b) return REAL(linkat)(from, path, onto, target, flags);
  if (!a || !b) abort();
  lock(); return named('L', REAL(linkat)(from, path, onto, target, flags), at, to);
}
int link(const char *path, const char *target) { return linkat(AT_FDCWD, path, AT_FDCWD, target, 0); }
