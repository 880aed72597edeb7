//! The system calls no safe wrapper offers, and all `unsafe` of this crate.
//!
//! The centre is [`spawn`]: it clones the agent and, in the child, does nothing but plain system calls on memory that
//! was prepared before, because another thread may have held any lock at that moment. The identity calls are made
//! directly for the same reason: the C library's own would first ask all threads it remembers.
#![expect(unsafe_code, reason = "raw system calls; nothing else in the crate may use it")]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which step of starting a program failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Prepare,
    Folder,
    Program,
}

/// Everything a child needs between its birth and its program.
pub(crate) struct Child<'a> {
    /// Becomes descriptors 0, 1 and 2.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Whether descriptor 0 becomes the controlling terminal of a new session; otherwise a new process group is made.
    pub(crate) terminal: bool,
    pub(crate) identity: Option<Identity<'a>>,
    pub(crate) folder: &'a CStr,
    /// Tried in order, as a shell does with `PATH`.
    pub(crate) programs: &'a [CString],
    pub(crate) arguments: &'a [CString],
    pub(crate) environment: &'a [CString],
    /// Closes on success; receives what [`parse_failure`] reads otherwise.
    pub(crate) failure: BorrowedFd<'a>,
    /// Made beforehand; the child starts inside.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'a [u32],
}

/// Splits off a child process; `Some` with its id in the parent. To be called before any thread exists.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: no other thread exists yet, so the child finds every lock free.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Waits for any child; its id.
pub(crate) fn wait_any() -> io::Result<i32> {
    // SAFETY: a null status pointer is allowed.
    match unsafe { libc::waitpid(-1, ptr::null_mut(), 0) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Closes everything from descriptor 3 on. To be called by a process that owns no descriptor objects.
pub(crate) fn close_all_from_3() {
    // SAFETY: the caller holds no object that still refers to one of these descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// Takes over a descriptor this program was started with, and keeps it from its children. Call once for each.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD on any number is harmless; it fails for one that is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and, being inherited, belongs to no other object.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes descriptors 0 to 2 `/dev/null`.
pub(crate) fn null_stdio() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for target in 0..=2 {
        // SAFETY: replaces a descriptor this program was started with, which no object owns.
        if unsafe { libc::dup2(null.as_raw_fd(), target) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives the kernel's random number generator new entropy and has it begin a new sequence.
pub(crate) fn reseed(entropy: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: c_ulong = 0x5207;
    let length = c_int::try_from(entropy.len()).map_err(io::Error::other)?;
    // `struct rand_pool_info`: bits that may be counted on, bytes, the bytes.
    let mut pool = Vec::with_capacity(8 + entropy.len());
    pool.extend_from_slice(&(length * 8).to_ne_bytes());
    pool.extend_from_slice(&length.to_ne_bytes());
    pool.extend_from_slice(entropy);
    let device = std::fs::OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the eight bytes of the head and as many more as it says, all of which are there; the
    // second request has no argument.
    let failed = unsafe {
        libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) == -1
            || libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG, 0) == -1
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the mounted ext4 that `inside` is a file or folder of `blocks` of its blocks large. It does not shrink.
pub(crate) fn grow_ext4(inside: impl AsFd, blocks: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: c_ulong = 0x4008_6610;
    // SAFETY: the kernel reads one number, which lives through the call.
    let failed =
        unsafe { libc::ioctl(inside.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) } == -1;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a non-blocking descriptor known to the runtime.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, for as long as it lives.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Puts signals into the state a program expects: nothing ignored, nothing blocked. (Rust ignores `SIGPIPE` again.)
pub(crate) fn reset_signals() {
    // All zero is the kernel's structure for the default action. The C library would refuse two of the numbers.
    let default = [0u64; 4];
    // SAFETY: called before any thread exists; installs no handlers; the structure is as large as the kernel's.
    unsafe {
        for signal in 1..=64 {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<c_void>(),
                8usize,
            );
        }
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Keeps the allocator from setting up a heap for each thread: they are few and mostly asleep.
pub(crate) fn use_one_heap() {
    // SAFETY: only sets a parameter, before any thread exists.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives memory the allocator holds free back to the system.
pub(crate) fn release_free_memory() {
    // SAFETY: has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// Starts a program. Returns its process id and a descriptor for its process; whether it got as far as running is
/// told through `child.failure`.
pub(crate) fn spawn(child: &Child<'_>) -> io::Result<(i32, OwnedFd)> {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (programs, arguments, environment) =
        (pointers(child.programs), pointers(child.arguments), pointers(child.environment));
    let mut pidfd: c_int = -1;
    // SAFETY: all fields of this plain structure may be zero.
    let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
    clone.flags = libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    clone.pidfd = &raw mut pidfd as u64;
    clone.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = child.cgroup {
        clone.flags |= CLONE_INTO_CGROUP;
        clone.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or_default();
    }
    // SAFETY: the structure is valid and of the stated size. Without CLONE_VM the child has its own copy of all memory;
    // it calls only `become_program`, which keeps to direct system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const clone, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => become_program(child, &programs, &arguments, &environment),
        pid => {
            // SAFETY: the kernel has just opened it for us, close-on-exec.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((pid as i32, pidfd))
        }
    }
}

/// `clone3` flags beyond the C library's 32 bits.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The text written to `/proc/self/oom_score_adj` of everything we start: when memory runs out, commands go before
/// the agent.
const OOM_SCORE: &[u8] = b"500";

fn become_program(
    child: &Child<'_>,
    programs: &[*const c_char],
    arguments: &[*const c_char],
    environment: &[*const c_char],
) -> ! {
    // SAFETY: every pointer was made by `spawn` from strings and slices that live in this process's copy of memory;
    // none of these calls takes a lock or allocates.
    let (stage, errno) = unsafe {
        match prepare(child) {
            Err(failed) => failed,
            Ok(()) => (Stage::Program, run(programs, arguments, environment)),
        }
    };
    let mut report = [0u8; 5];
    report[0] = stage as u8;
    report[1..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: as above.
    unsafe {
        libc::syscall(libc::SYS_write, child.failure.as_raw_fd(), report.as_ptr(), report.len());
        loop {
            libc::syscall(libc::SYS_exit_group, 127);
        }
    }
}

unsafe fn prepare(child: &Child<'_>) -> Result<(), (Stage, c_int)> {
    // SAFETY: see `become_program`.
    unsafe {
        let step = |stage: Stage, result: c_long| if result < 0 { Err((stage, errno())) } else { Ok(()) };
        let go = |result: c_long| step(Stage::Prepare, result);
        if child.terminal {
            go(libc::syscall(libc::SYS_setsid))?;
        } else {
            go(libc::syscall(libc::SYS_setpgid, 0, 0))?;
        }
        // Not worth failing for: it protects the agent, not the command.
        let score = libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        if score >= 0 {
            libc::syscall(libc::SYS_write, score, OOM_SCORE.as_ptr(), OOM_SCORE.len());
        }
        go(libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC))?;
        for (target, source) in child.stdio.iter().enumerate() {
            // The agent's own descriptors 0 to 2 are /dev/null, so source and target differ.
            go(libc::syscall(libc::SYS_dup3, source.as_raw_fd(), target as c_int, 0))?;
        }
        if child.terminal {
            go(libc::syscall(libc::SYS_ioctl, 0, libc::TIOCSCTTY as c_ulong, 0))?;
        }
        if let Some(Identity { uid, gid, groups }) = child.identity {
            go(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
            go(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            go(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        step(Stage::Folder, libc::syscall(libc::SYS_chdir, child.folder.as_ptr()))
    }
}

/// Tries the programs in turn; the error number to report when none runs.
unsafe fn run(
    programs: &[*const c_char],
    arguments: &[*const c_char],
    environment: &[*const c_char],
) -> c_int {
    let mut answer = libc::ENOENT;
    for &program in programs.iter().filter(|program| !program.is_null()) {
        // SAFETY: see `become_program`; both arrays end with a null pointer.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_execve,
                program,
                arguments.as_ptr().cast::<c_void>(),
                environment.as_ptr().cast::<c_void>(),
            );
            errno()
        };
        match failed {
            libc::EACCES => answer = libc::EACCES,
            libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG | libc::ESTALE | libc::ENODEV => {
            }
            other => return other,
        }
    }
    answer
}

unsafe fn errno() -> c_int {
    // SAFETY: the pointer is to this thread's own variable.
    unsafe { *libc::__errno_location() }
}

/// Sends any signal by number to a process group.
pub(crate) fn signal_group(group: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: has no preconditions; `Pid` is positive, so that this is one group and never everybody.
    match unsafe { libc::kill(-group.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads what a child that did not get to its program has left.
pub(crate) fn parse_failure(report: [u8; 5]) -> (Stage, io::Error) {
    let [stage, number @ ..] = report;
    let stage = match stage {
        1 => Stage::Folder,
        2 => Stage::Program,
        _ => Stage::Prepare,
    };
    (stage, io::Error::from_raw_os_error(i32::from_ne_bytes(number)))
}
