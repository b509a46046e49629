#include "sandboxd/function/filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include <initializer_list>

#include "sandboxd/agent/os.h"

namespace reprise::sandboxd::function {
namespace {

// What compilers, interpreters and ordinary programs need. Everything else fails with EPERM.
constexpr const char* kAllowed[] = {
    // Files.
    "access", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat", "dup",
    "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod",
    "fchmodat", "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock",
    "fstat", "fstatfs", "fsync", "ftruncate", "getcwd", "getdents", "getdents64", "getxattr",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "lchown", "lgetxattr",
    "link", "linkat", "listxattr", "llistxattr", "lseek", "lstat", "memfd_create", "mkdir",
    "mkdirat", "mknod", "mknodat", "newfstatat", "open", "openat", "openat2", "pread64", "preadv",
    "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat",
    "readv", "rename", "renameat", "renameat2", "rmdir", "sendfile", "splice", "stat", "statfs",
    "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "tee", "truncate",
    "umask", "unlink", "unlinkat", "utime", "utimensat", "utimes", "vmsplice", "write", "writev",
    // Memory.
    "brk", "madvise", "membarrier", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mprotect",
    "mremap", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free",
    "pkey_mprotect",
    // Processes, threads, signals.
    "arch_prctl", "capget", "execve", "execveat", "exit", "exit_group", "fork", "futex",
    "futex_waitv", "get_robust_list", "get_thread_area", "getcpu", "getegid", "geteuid", "getgid",
    "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getresgid", "getresuid",
    "getrlimit", "getrusage", "getsid", "gettid", "getuid", "kill", "pause", "pidfd_open",
    "pidfd_send_signal", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending",
    "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
    "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_setaffinity", "sched_yield", "seccomp", "set_robust_list", "set_tid_address", "setfsgid",
    "setfsuid", "setgid", "setpgid", "setpriority", "setregid", "setresgid", "setresuid",
    "setreuid", "setrlimit", "setsid", "setuid", "sigaltstack", "signalfd", "signalfd4", "sysinfo",
    "tgkill", "tkill", "uname", "vfork", "wait4", "waitid",
    // Time.
    "alarm", "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "gettimeofday",
    "nanosleep", "setitimer", "time", "timer_create", "timer_delete", "timer_getoverrun",
    "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime", "timerfd_settime",
    "times",
    // Waiting and talking. Networks: the namespace has none.
    "accept", "accept4", "bind", "connect", "epoll_create", "epoll_create1", "epoll_ctl",
    "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2", "getpeername", "getrandom",
    "getsockname", "getsockopt", "listen", "pipe", "pipe2", "poll", "ppoll", "pselect6", "recvfrom",
    "recvmmsg", "recvmsg", "select", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
    // IPC of the own namespace.
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink",
    "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop", "shmat",
    "shmctl", "shmdt", "shmget"};

// No ordinary program asks for these: it is killed, and the outcome says so.
constexpr const char* kKilled[] = {"acct",
                                   "bpf",
                                   "delete_module",
                                   "finit_module",
                                   "fsconfig",
                                   "fsmount",
                                   "fsopen",
                                   "fspick",
                                   "init_module",
                                   "ioperm",
                                   "iopl",
                                   "kexec_file_load",
                                   "kexec_load",
                                   "mount",
                                   "mount_setattr",
                                   "move_mount",
                                   "open_by_handle_at",
                                   "open_tree",
                                   "pivot_root",
                                   "quotactl",
                                   "reboot",
                                   "setns",
                                   "sethostname",
                                   "setdomainname",
                                   "settimeofday",
                                   "clock_settime",
                                   "swapoff",
                                   "swapon",
                                   "umount2",
                                   "unshare",
                                   "userfaultfd"};

// Libraries fall back to older calls when these say that they do not exist.
constexpr const char* kAbsent[] = {"clone3", "io_uring_setup", "io_uring_enter",
                                   "io_uring_register"};

// Never TIOCSTI, which types into a terminal.
constexpr unsigned kIoctls[] = {TCGETS,   TCSETS,    TCSETSW,    TCSETSF,    TCSBRK,
                                TCXONC,   TCFLSH,    TIOCGPGRP,  TIOCSPGRP,  TIOCGSID,
                                TIOCOUTQ, TIOCNOTTY, TIOCGWINSZ, TIOCSWINSZ, FIONREAD,
                                FIONBIO,  FIOCLEX,   FIONCLEX,   FIOASYNC};
constexpr int kPrctls[] = {
    PR_SET_NAME,        PR_GET_NAME,       PR_SET_PDEATHSIG,    PR_GET_PDEATHSIG,
    PR_GET_DUMPABLE,    PR_CAPBSET_READ,   PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS,
    PR_GET_SECCOMP,     PR_SET_TIMERSLACK, PR_GET_TIMERSLACK,   PR_SET_CHILD_SUBREAPER,
    PR_SET_THP_DISABLE, PR_SET_VMA,        PR_GET_KEEPCAPS,     PR_GET_TID_ADDRESS};
constexpr uint64_t kNamespaceFlags = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                                     CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
constexpr uint64_t kLow32 = 0xffffffff;

class Builder {
 public:
  Builder() : context_(seccomp_init(SCMP_ACT_ERRNO(EPERM))) {}
  ~Builder() { seccomp_release(context_); }

  // Names that this libseccomp or architecture does not know are not there to be called either.
  void Rule(uint32_t action, const char* name,
            std::initializer_list<scmp_arg_cmp> conditions = {}) {
    const int number = seccomp_syscall_resolve_name(name);
    if (number == __NR_SCMP_ERROR || number < 0) return;
    const int error =
        seccomp_rule_add_array(context_, action, number, static_cast<unsigned>(conditions.size()),
                               conditions.size() == 0 ? nullptr : conditions.begin());
    if (error != 0 && error_ == 0) error_ = -error;
  }
  scmp_filter_ctx context() { return context_; }
  int error() const { return context_ == nullptr ? ENOMEM : error_; }

 private:
  scmp_filter_ctx context_;
  int error_ = 0;
};

}  // namespace

std::vector<sock_filter> MakeFilter(std::string* why) {
  Builder builder;
  if (builder.context() != nullptr) {
    seccomp_attr_set(builder.context(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    seccomp_attr_set(builder.context(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
    for (const char* name : kAllowed) builder.Rule(SCMP_ACT_ALLOW, name);
    for (const char* name : kKilled) builder.Rule(SCMP_ACT_KILL_PROCESS, name);
    for (const char* name : kAbsent) builder.Rule(SCMP_ACT_ERRNO(ENOSYS), name);
    builder.Rule(SCMP_ACT_ALLOW, "clone", {SCMP_A0(SCMP_CMP_MASKED_EQ, kNamespaceFlags, 0)});
    for (const int domain : {AF_UNIX, AF_INET, AF_INET6}) {
      builder.Rule(SCMP_ACT_ALLOW, "socket",
                   {SCMP_A0(SCMP_CMP_MASKED_EQ, kLow32, static_cast<uint64_t>(domain))});
    }
    builder.Rule(SCMP_ACT_ALLOW, "socketpair", {SCMP_A0(SCMP_CMP_MASKED_EQ, kLow32, AF_UNIX)});
    for (const unsigned request : kIoctls) {
      builder.Rule(SCMP_ACT_ALLOW, "ioctl", {SCMP_A1(SCMP_CMP_MASKED_EQ, kLow32, request)});
    }
    for (const int option : kPrctls) {
      builder.Rule(SCMP_ACT_ALLOW, "prctl",
                   {SCMP_A0(SCMP_CMP_MASKED_EQ, kLow32, static_cast<uint64_t>(option))});
    }
    builder.Rule(SCMP_ACT_ALLOW, "prlimit64", {SCMP_A0(SCMP_CMP_MASKED_EQ, kLow32, 0)});
  }
  const agent::Fd memory(memfd_create("filter", MFD_CLOEXEC));
  int error = builder.error();
  if (error == 0 && !memory.valid()) error = errno;
  if (error == 0) error = -seccomp_export_bpf(builder.context(), memory.get());
  if (error != 0) {
    *why = std::string("cannot make the system-call filter: ") + strerror(error);
    return {};
  }
  struct stat info {};
  fstat(memory.get(), &info);
  std::vector<sock_filter> filter(static_cast<size_t>(info.st_size) / sizeof(sock_filter));
  if (pread(memory.get(), filter.data(), filter.size() * sizeof(sock_filter), 0) != info.st_size)
    filter.clear();
  if (filter.empty()) *why = "cannot read the system-call filter back";
  return filter;
}

bool InstallFilter(const std::vector<sock_filter>& filter) {
  sock_fprog program{static_cast<unsigned short>(filter.size()),
                     const_cast<sock_filter*>(filter.data())};
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
}

}  // namespace reprise::sandboxd::function
