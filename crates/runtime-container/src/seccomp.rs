//! The system calls a sandbox may make.
//!
//! An allow-list: what is not here answers `ENOSYS`, so that programs fall back as on an older kernel. Left out is what
//! changes the host or reaches large, rarely used parts of the kernel: mounting, namespaces, modules, BPF, perf,
//! io_uring, userfaultfd, keyrings, clocks, swap, reboot, raw port access and file handles. Right to use what is listed
//! still depends on capabilities, and the sandbox has none outside its user namespace.
//!
//! A 32-bit system call ends its process: the numbers mean other things there.

use libc::c_long;

mod program;

pub(crate) use program::Instruction;
use program::{Action, Program};

/// Builds the filter; done once by the launcher.
///
/// The kernel runs a new filter over every system call number when it is installed. A chain of comparisons, which is
/// what general-purpose compilers make of a list, costs it a millisecond there; a search tree a tenth of that.
pub(crate) fn filter() -> Vec<Instruction> {
    let mut actions: Vec<(u32, Action)> =
        ALLOWED.iter().map(|number| (call(*number), Action::Allow)).collect();
    actions.extend([
        (call(libc::SYS_clone), Action::AllowUnlessSet(NEW_NAMESPACES)),
        (call(libc::SYS_socket), Action::AllowOneOf(&FAMILIES)),
        (call(libc::SYS_personality), Action::AllowOneOf(&PERSONALITIES)),
        (call(libc::SYS_setrlimit), Action::PretendFor { of: 0, value: CORE, sets: None }),
        (call(libc::SYS_prlimit64), Action::PretendFor { of: 1, value: CORE, sets: Some(2) }),
    ]);
    Program::new(ARCHITECTURE, actions).assemble()
}

fn call(number: c_long) -> u32 {
    u32::try_from(number).expect("system call numbers are small and not negative")
}

/// As in `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// The `CLONE_NEW…` flags. (`clone3` hides its flags from us; new user namespaces are shut off by their limit, all
/// others need a capability the sandbox lacks.)
const NEW_NAMESPACES: u32 = 0x7e02_0000;

/// Socket families: local, IPv4, IPv6 and the kernel's own netlink.
const FAMILIES: [u32; 4] = [1, 2, 10, 16];

/// Linux; with address randomisation off; the same for 32-bit; and "tell me which".
const PERSONALITIES: [u32; 5] = [0, 0x0004_0000, 8, 0x0002_0000, 0xffff_ffff];

/// Numbers newer than the libc crate's tables; the same on every architecture.
const SYS_FUTEX_WAKE: c_long = 454;
const SYS_FUTEX_WAIT: c_long = 455;
const SYS_FUTEX_REQUEUE: c_long = 456;
const SYS_CACHESTAT: c_long = 451;
const SYS_FCHMODAT2: c_long = 452;
const SYS_MAP_SHADOW_STACK: c_long = 453;
const SYS_MSEAL: c_long = 462;

#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_read, libc::SYS_write, libc::SYS_close, libc::SYS_fstat, libc::SYS_lseek, libc::SYS_pread64,
    libc::SYS_pwrite64, libc::SYS_readv, libc::SYS_writev, libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2,
    libc::SYS_pwritev2, libc::SYS_openat, libc::SYS_openat2, libc::SYS_close_range, libc::SYS_newfstatat,
    libc::SYS_statx, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_mkdirat,
    libc::SYS_mknodat, libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_linkat,
    libc::SYS_symlinkat, libc::SYS_fchmod, libc::SYS_fchmodat, SYS_FCHMODAT2, libc::SYS_fchown, libc::SYS_fchownat,
    libc::SYS_utimensat, libc::SYS_truncate, libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fadvise64,
    libc::SYS_readahead, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync, libc::SYS_syncfs,
    libc::SYS_sync_file_range, libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir,
    libc::SYS_chroot, libc::SYS_umask, libc::SYS_flock, libc::SYS_fcntl, libc::SYS_ioctl, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_pipe2, libc::SYS_splice, libc::SYS_tee, libc::SYS_vmsplice, libc::SYS_sendfile, libc::SYS_copy_file_range,
    libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr,
    libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr, libc::SYS_listxattr, libc::SYS_llistxattr,
    libc::SYS_flistxattr, libc::SYS_removexattr, libc::SYS_lremovexattr, libc::SYS_fremovexattr,
    libc::SYS_inotify_init1, libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch, SYS_CACHESTAT,
    libc::SYS_memfd_create, libc::SYS_io_setup, libc::SYS_io_destroy, libc::SYS_io_submit, libc::SYS_io_cancel,
    libc::SYS_io_getevents,
    // Waiting.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_signalfd4, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // Memory.
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_madvise,
    libc::SYS_process_madvise, libc::SYS_mincore, libc::SYS_msync, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock,
    libc::SYS_mlockall, libc::SYS_munlockall, libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect,
    libc::SYS_membarrier, libc::SYS_get_mempolicy, libc::SYS_set_mempolicy, libc::SYS_mbind, libc::SYS_remap_file_pages,
    SYS_MAP_SHADOW_STACK, SYS_MSEAL,
    // Processes and threads.
    libc::SYS_clone3, libc::SYS_execve, libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_wait4,
    libc::SYS_waitid, libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal, libc::SYS_pidfd_getfd, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid,
    libc::SYS_getpgid, libc::SYS_setpgid, libc::SYS_getsid, libc::SYS_setsid, libc::SYS_set_tid_address,
    libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq, libc::SYS_futex, libc::SYS_futex_waitv,
    SYS_FUTEX_WAKE, SYS_FUTEX_WAIT, SYS_FUTEX_REQUEUE, libc::SYS_restart_syscall, libc::SYS_prctl, libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self,
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_kcmp,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_setparam, libc::SYS_sched_getscheduler, libc::SYS_sched_setscheduler, libc::SYS_sched_getattr,
    libc::SYS_sched_setattr, libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval, libc::SYS_getpriority, libc::SYS_setpriority, libc::SYS_ioprio_get,
    libc::SYS_ioprio_set, libc::SYS_getcpu,
    // Ids and limits.
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid, libc::SYS_getresgid,
    libc::SYS_getgroups, libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_setresuid,
    libc::SYS_setresgid, libc::SYS_setgroups, libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_capget,
    libc::SYS_capset, libc::SYS_getrlimit, libc::SYS_getrusage,
    libc::SYS_times, libc::SYS_sysinfo, libc::SYS_uname, libc::SYS_getrandom,
    // Time.
    libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime, libc::SYS_clock_getres,
    libc::SYS_gettimeofday, libc::SYS_timer_create, libc::SYS_timer_settime, libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun, libc::SYS_timer_delete, libc::SYS_getitimer, libc::SYS_setitimer,
    // Sockets; `socket` itself by family.
    libc::SYS_socketpair, libc::SYS_bind, libc::SYS_connect, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4,
    libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_setsockopt, libc::SYS_getsockopt, libc::SYS_sendto,
    libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_recvmmsg, libc::SYS_shutdown,
    // System V and POSIX interprocess communication, within the sandbox's own namespace.
    libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmdt, libc::SYS_shmctl, libc::SYS_semget, libc::SYS_semop,
    libc::SYS_semtimedop, libc::SYS_semctl, libc::SYS_msgget, libc::SYS_msgsnd, libc::SYS_msgrcv, libc::SYS_msgctl,
    libc::SYS_mq_open, libc::SYS_mq_unlink, libc::SYS_mq_timedsend, libc::SYS_mq_timedreceive, libc::SYS_mq_notify,
    libc::SYS_mq_getsetattr,
    // Calls that newer architectures no longer have.
    #[cfg(target_arch = "x86_64")] libc::SYS_open,
    #[cfg(target_arch = "x86_64")] libc::SYS_creat,
    #[cfg(target_arch = "x86_64")] libc::SYS_stat,
    #[cfg(target_arch = "x86_64")] libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")] libc::SYS_access,
    #[cfg(target_arch = "x86_64")] libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")] libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")] libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")] libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_rename,
    #[cfg(target_arch = "x86_64")] libc::SYS_link,
    #[cfg(target_arch = "x86_64")] libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")] libc::SYS_chown,
    #[cfg(target_arch = "x86_64")] libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")] libc::SYS_utime,
    #[cfg(target_arch = "x86_64")] libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")] libc::SYS_futimesat,
    #[cfg(target_arch = "x86_64")] libc::SYS_getdents,
    #[cfg(target_arch = "x86_64")] libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")] libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")] libc::SYS_poll,
    #[cfg(target_arch = "x86_64")] libc::SYS_select,
    #[cfg(target_arch = "x86_64")] libc::SYS_epoll_create,
    #[cfg(target_arch = "x86_64")] libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")] libc::SYS_eventfd,
    #[cfg(target_arch = "x86_64")] libc::SYS_signalfd,
    #[cfg(target_arch = "x86_64")] libc::SYS_inotify_init,
    #[cfg(target_arch = "x86_64")] libc::SYS_fork,
    #[cfg(target_arch = "x86_64")] libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")] libc::SYS_getpgrp,
    #[cfg(target_arch = "x86_64")] libc::SYS_pause,
    #[cfg(target_arch = "x86_64")] libc::SYS_alarm,
    #[cfg(target_arch = "x86_64")] libc::SYS_time,
    #[cfg(target_arch = "x86_64")] libc::SYS_arch_prctl,
];

/// The limit of core dumps. It stays at 1, which keeps the host's kernel from running its handler of crashes, as root and
/// outside, on memory of a sandbox; 0 would not.
const CORE: u32 = libc::RLIMIT_CORE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reaches_the_host_is_not_listed() {
        for number in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_clock_settime,
            libc::SYS_open_by_handle_at,
            libc::SYS_fsopen,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_syslog,
            libc::SYS_iopl,
        ] {
            assert!(!ALLOWED.contains(&number), "system call {number} is allowed");
        }
    }

    #[test]
    fn the_filter_says_what_the_list_says() {
        let filter = filter();
        let verdict = |number, argument| program::run(&filter, ARCHITECTURE, number, argument);
        // Numbers with the x32 bit are among those that are not listed.
        for number in (0..1000).chain(0x4000_0000..0x4000_0400) {
            let listed = ALLOWED.iter().any(|allowed| call(*allowed) == number);
            let checked = [
                libc::SYS_clone,
                libc::SYS_socket,
                libc::SYS_personality,
                libc::SYS_setrlimit,
                libc::SYS_prlimit64,
            ]
            .map(call)
            .contains(&number);
            if !checked {
                let expected = if listed { program::ALLOW } else { program::NO_SUCH_CALL };
                assert_eq!(verdict(number, 0), expected, "system call {number}");
            }
        }
    }

    #[test]
    fn arguments_decide_where_they_should() {
        let filter = filter();
        let verdict = |number, argument| program::run(&filter, ARCHITECTURE, call(number), argument);
        assert_eq!(verdict(libc::SYS_clone, 0x11), program::ALLOW);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP] {
            assert_eq!(verdict(libc::SYS_clone, flag.cast_unsigned() | 0x11), program::NO_SUCH_CALL);
        }
        for family in 0..64 {
            let allowed = FAMILIES.contains(&family);
            assert_eq!(verdict(libc::SYS_socket, family) == program::ALLOW, allowed, "family {family}");
        }
        assert_eq!(verdict(libc::SYS_personality, 0xffff_ffff), program::ALLOW);
        assert_eq!(verdict(libc::SYS_personality, 0x0008_0000), program::NO_SUCH_CALL);
    }

    #[test]
    fn the_limit_of_core_dumps_is_read_and_not_set() {
        let filter = filter();
        let verdict =
            |number, arguments: &[u64]| program::run_with(&filter, ARCHITECTURE, call(number), arguments);
        let core = u64::from(CORE);
        assert_eq!(verdict(libc::SYS_setrlimit, &[core, 0x1000]), program::PRETEND);
        assert_eq!(verdict(libc::SYS_prlimit64, &[0, core, 0, 0x1000]), program::ALLOW);
        for pointer in [0x1000, 0x1_0000_0000, 0x7fff_0000_1000] {
            assert_eq!(verdict(libc::SYS_prlimit64, &[0, core, pointer, 0]), program::PRETEND, "{pointer:x}");
            assert_eq!(verdict(libc::SYS_prlimit64, &[core, 7, pointer, 0]), program::ALLOW);
        }
        assert_eq!(verdict(libc::SYS_setrlimit, &[7, 0x1000]), program::ALLOW);
    }

    #[test]
    fn another_architecture_ends_the_process() {
        assert_eq!(program::run(&filter(), 0x4000_0003, 1, 0), program::KILL);
    }

    #[test]
    fn a_verdict_takes_few_steps() {
        let filter = filter();
        assert!(filter.len() < 1000, "{} instructions", filter.len());
        let longest = (0..500).map(|number| program::steps(&filter, ARCHITECTURE, number, 0)).max().unwrap();
        assert!(longest < 40, "{longest} steps");
    }
}
