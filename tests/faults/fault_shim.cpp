// Preloaded: lets the n-th of some calls of the C library fail, or end the process. The calls that
// count are those on one folder and what lies in it, and allocations of some size.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

enum Action { kFail, kShort, kKill };

char folder[PATH_MAX];
char armed[32];  // the call
long calls = 0, fails_at = 0, fails_until = 0;
int error_number = 0, action = kFail;
size_t smallest = 0;
bool active = false;

template <class F>
F real(F, const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

bool inside(const char* path) { return strncmp(path, folder, strlen(folder)) == 0; }

bool inside(int file) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return false;
  path[length] = 0;
  return inside(path);
}

bool inside_at(int at, const char* path) {
  return path[0] == '/' ? inside(path) : at == AT_FDCWD ? false : inside(at);
}

bool hit() {
  ++calls;
  if (calls < fails_at || calls > fails_until) return false;
  if (action == kKill) kill(getpid(), SIGKILL);
  errno = error_number;
  return true;
}

bool is_armed(const char* call) { return active && strcmp(call, armed) == 0; }

template <class Where>
bool fault(const char* call, Where where) {
  if (!is_armed(call)) return false;
  int kept = errno;
  bool found = inside(where) && hit();
  if (!found) errno = kept;
  return found;
}

bool fault_at(const char* call, int at, const char* path) {
  return is_armed(call) && inside_at(at, path) && hit();
}

bool no_memory(size_t size) { return is_armed("malloc") && size >= smallest && hit(); }

}  // namespace

extern "C" {

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void fault_arm(const char* call, const char* in, long first, long last, int error, int how,
               size_t bytes) {
  snprintf(folder, sizeof folder, "%s", in);
  snprintf(armed, sizeof armed, "%s", call);
  calls = 0;
  fails_at = first;
  fails_until = last;
  error_number = error;
  action = how;
  smallest = bytes;
  active = true;
}

// Returns how many calls there were.
long fault_disarm() {
  active = false;
  return calls;
}

// ---- files

// The mode is there or not, and is passed on as it comes.
#define FAULT_OPEN(name)                       \
  int name(const char* path, int flags, ...) { \
    va_list more;                              \
    va_start(more, flags);                     \
    int mode = va_arg(more, int);              \
    va_end(more);                              \
    if (fault("open", path)) return -1;        \
    static auto next = real(&name, #name);     \
    return next(path, flags, mode);            \
  }

#define FAULT_OPENAT(name)                             \
  int name(int at, const char* path, int flags, ...) { \
    va_list more;                                      \
    va_start(more, flags);                             \
    int mode = va_arg(more, int);                      \
    va_end(more);                                      \
    if (fault_at("open", at, path)) return -1;         \
    static auto next = real(&name, #name);             \
    return next(at, path, flags, mode);                \
  }

FAULT_OPEN(open)
FAULT_OPEN(open64)
FAULT_OPENAT(openat)
FAULT_OPENAT(openat64)

// A close that fails has closed.
int close(int file) {
  static auto next = real(&close, "close");
  bool fails = fault("close", file);
  int result = next(file);
  if (!fails) return result;
  errno = error_number;
  return -1;
}

int fcntl64(int file, int command, ...) {
  va_list more;
  va_start(more, command);
  void* argument = va_arg(more, void*);
  va_end(more);
  if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && fault("dup", file)) return -1;
  static auto next = real(&fcntl64, "fcntl64");
  return next(file, command, argument);
}

int fcntl(int file, int command, ...) {
  va_list more;
  va_start(more, command);
  void* argument = va_arg(more, void*);
  va_end(more);
  return fcntl64(file, command, argument);
}

ssize_t write(int file, const void* data, size_t size) {
  static auto next = real(&write, "write");
  if (!fault("write", file)) return next(file, data, size);
  if (action != kShort || size < 2) return -1;
  fails_until = calls + 1;  // a disk that is full takes some, then nothing
  return next(file, data, size / 2);
}

ssize_t read(int file, void* data, size_t size) {
  static auto next = real(&read, "read");
  if (!fault("read", file)) return next(file, data, size);
  return action == kShort && size > 1 ? next(file, data, size / 2) : -1;
}

ssize_t pread(int file, void* data, size_t size, off_t offset) {
  static auto next = real(&pread, "pread");
  if (!fault("read", file)) return next(file, data, size, offset);
  return action == kShort && size > 1 ? next(file, data, size / 2, offset) : -1;
}

ssize_t pread64(int file, void* data, size_t size, off64_t offset) {
  static auto next = real(&pread64, "pread64");
  if (!fault("read", file)) return next(file, data, size, offset);
  return action == kShort && size > 1 ? next(file, data, size / 2, offset) : -1;
}

// What Python calls for os.preadv: one of these two.
ssize_t preadv64v2(int file, const struct iovec* parts, int count, off64_t offset, int flags) {
  static auto next = real(&preadv64v2, "preadv64v2");
  if (!fault("read", file)) return next(file, parts, count, offset, flags);
  if (action != kShort || count != 1 || parts->iov_len < 2) return -1;
  iovec half = {parts->iov_base, parts->iov_len / 2};
  return next(file, &half, 1, offset, flags);
}

ssize_t preadv64(int file, const struct iovec* parts, int count, off64_t offset) {
  return preadv64v2(file, parts, count, offset, 0);
}

off_t lseek(int file, off_t offset, int whence) {
  if (fault("lseek", file)) return -1;
  static auto next = real(&lseek, "lseek");
  return next(file, offset, whence);
}

off64_t lseek64(int file, off64_t offset, int whence) {
  if (fault("lseek", file)) return -1;
  static auto next = real(&lseek64, "lseek64");
  return next(file, offset, whence);
}

int fsync(int file) {
  if (fault("fsync", file)) return -1;
  static auto next = real(&fsync, "fsync");
  return next(file);
}

int flock(int file, int operation) {
  if (fault("flock", file)) return -1;
  static auto next = real(&flock, "flock");
  return next(file, operation);
}

int fchmod(int file, mode_t mode) {
  if (fault("fchmod", file)) return -1;
  static auto next = real(&fchmod, "fchmod");
  return next(file, mode);
}

int fstat(int file, struct stat* status) {
  if (fault("fstat", file)) return -1;
  static auto next = real(&fstat, "fstat");
  return next(file, status);
}

int fstat64(int file, struct stat64* status) {
  if (fault("fstat", file)) return -1;
  static auto next = real(&fstat64, "fstat64");
  return next(file, status);
}

int fstatat(int at, const char* path, struct stat* status, int flags) {
  if (fault_at("fstatat", at, path)) return -1;
  static auto next = real(&fstatat, "fstatat");
  return next(at, path, status, flags);
}

int fstatat64(int at, const char* path, struct stat64* status, int flags) {
  if (fault_at("fstatat", at, path)) return -1;
  static auto next = real(&fstatat64, "fstatat64");
  return next(at, path, status, flags);
}

int renameat(int from, const char* old_path, int to, const char* path) {
  if (fault_at("rename", to, path)) return -1;
  static auto next = real(&renameat, "renameat");
  return next(from, old_path, to, path);
}

int unlinkat(int at, const char* path, int flags) {
  if (fault_at("unlink", at, path)) return -1;
  static auto next = real(&unlinkat, "unlinkat");
  return next(at, path, flags);
}

// ---- memory: glibc's own functions, because dlsym allocates

void* malloc(size_t size) { return no_memory(size) ? nullptr : __libc_malloc(size); }

void* calloc(size_t count, size_t size) {
  return no_memory(count * size) ? nullptr : __libc_calloc(count, size);
}

void* realloc(void* memory, size_t size) {
  return no_memory(size) ? nullptr : __libc_realloc(memory, size);
}

void* aligned_alloc(size_t alignment, size_t size) {
  return no_memory(size) ? nullptr : __libc_memalign(alignment, size);
}

int posix_memalign(void** memory, size_t alignment, size_t size) {
  void* found = aligned_alloc(alignment, size);
  if (found == nullptr) return ENOMEM;
  *memory = found;
  return 0;
}

}  // extern "C"
