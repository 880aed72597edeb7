//! The system calls rustix has no safe form for: what the launcher and the set-up processes of both runtimes need.
//!
//! Most are only right in a single-threaded process; each says so.
#![expect(unsafe_code, reason = "raw system calls; each block says why it is sound")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which side of a fork this is.
pub enum Fork {
    Parent(libc::pid_t),
    Child,
}

/// Forks, with new namespaces for the child (`CLONE_NEW…` flags or 0).
///
/// Only for the single-threaded launcher and its children: the child may then do anything its parent could.
pub fn fork(namespaces: libc::c_int) -> io::Result<Fork> {
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    let args = CloneArgs {
        flags: u64::from(namespaces.cast_unsigned()),
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        ..CloneArgs::default()
    };
    // SAFETY: no CLONE_VM, so the child has a copy of everything and, without a stack given, continues on its copy of
    // ours. The process is single-threaded, so no lock can be held by a thread that the child lacks.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    match pid {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(libc::pid_t::try_from(pid).expect("the kernel's pids fit"))),
    }
}

/// Ends this process at once, without running destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives a mount the id mapping of a user namespace.
pub fn idmap_mount(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user_namespace.as_raw_fd()).expect("descriptors are not negative"),
    };
    // SAFETY: the path is an empty C string and `attr` lives through the call with the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}

/// Runs the program behind `program` in this process. Returns only on failure.
pub fn exec(program: BorrowedFd<'_>, args: &[&CStr]) -> io::Error {
    let mut argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: both lists end in a null pointer and their strings outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Joins the namespace behind `namespace`, which must be of kind `kind` (`CLONE_NEW…`).
pub fn join_namespace(namespace: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), kind) }).map(drop)
}

/// Makes a non-blocking descriptor known to the runtime. Must be called on a tokio runtime.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, for as long as it lives.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Moves this process into new namespaces (`CLONE_NEW…` flags).
pub fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_unshare, namespaces) }).map(drop)
}

/// Does `work` with files made as host id `id`, and with all capabilities all the same.
pub fn as_file_owner<T>(id: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 4;
    let set_bits = |bits: libc::c_ulong| {
        // SAFETY: takes no pointers.
        check(unsafe { libc::c_long::from(libc::prctl(libc::PR_SET_SECUREBITS, bits, 0, 0, 0)) })
    };
    let set_ids = |id: u32| {
        // SAFETY: takes no pointers. These calls answer with the id before, whether they worked or not.
        unsafe { (libc::setfsgid(id), libc::setfsuid(id)) }
    };
    // Otherwise leaving id 0 would take the capabilities over files away.
    set_bits(SECBIT_NO_SETUID_FIXUP)?;
    set_ids(id);
    let done = work();
    set_ids(0);
    set_bits(0)?;
    Ok(done)
}

/// Becomes id 0 of the user namespace, with no further groups. For a single-threaded process.
pub fn become_root() -> io::Result<()> {
    // SAFETY: an empty group list needs no memory; the other calls take no pointers. The raw calls change this one
    // thread, which is all there is.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        check(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
        check(libc::syscall(libc::SYS_setresuid, 0, 0, 0))?;
    }
    Ok(())
}

/// Becomes an unprivileged user for good: no further groups, no capabilities, and no program that gives new ones. For a
/// single-threaded process.
pub fn become_user(id: u32) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: as in `become_root`.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        check(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        check(libc::syscall(libc::SYS_setresuid, id, id, id))?;
    }
    Ok(())
}

/// Makes the network device `name` whose frames go through the descriptor `device`, an open `/dev/net/tun`; it goes with
/// its last descriptor.
pub fn make_tap(device: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const TAP: u16 = 0x0002;
    const NO_PACKET_INFORMATION: u16 = 0x1000;
    const OFFLOAD_HEADER: u16 = 0x4000;
    const ONLY_NEW: u16 = 0x8000;
    let mut request = [0u8; 40];
    if name.len() >= 16 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = TAP | NO_PACKET_INFORMATION | OFFLOAD_HEADER | ONLY_NEW;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq`, which is 40 bytes: a name of 16, then the flags.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF as _, request.as_mut_ptr()) };
    check(libc::c_long::from(result)).map(drop)
}

/// Takes a capability out of the set that any later program can have.
pub fn drop_from_bounding_set(capability: u32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe {
        libc::c_long::from(libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0))
    })
    .map(drop)
}

/// Makes orphans among our descendants our children.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::c_long::from(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) }).map(drop)
}

/// What the kernel does with children that end.
#[derive(Clone, Copy)]
pub enum EndedChildren {
    /// They are gone at once; nobody waits for them.
    Forget,
    /// They stay until they are waited for, as usual.
    Keep,
}

pub fn ended_children(what: EndedChildren) -> io::Result<()> {
    let handler = match what {
        EndedChildren::Forget => libc::SIG_IGN,
        EndedChildren::Keep => libc::SIG_DFL,
    };
    // SAFETY: neither disposition runs code of ours.
    if unsafe { libc::signal(libc::SIGCHLD, handler) } == libc::SIG_ERR {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Leaves the keyrings of the host behind.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    })
    .map(drop)
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) -> io::Result<()> {
    let first = u32::try_from(first).expect("descriptors are not negative");
    // SAFETY: for a process about to exec or exit; nothing that owns these descriptors runs again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Puts a copy of `fd` at exactly `target`, open across exec.
pub fn place_descriptor(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointers; `target` is a number this program keeps for the purpose.
    check(unsafe { libc::c_long::from(libc::dup2(fd.as_raw_fd(), target)) }).map(drop)
}

/// Starts `command` with a copy of `fd` as its descriptor `target`.
pub fn spawn_with_descriptor(
    command: &mut std::process::Command,
    fd: BorrowedFd<'_>,
    target: RawFd,
) -> io::Result<std::process::Child> {
    use std::os::unix::process::CommandExt;
    let source = fd.as_raw_fd();
    // SAFETY: between fork and exec only `dup2` and `fcntl` run, which are safe there. When the numbers are equal,
    // `dup2` would leave the close-on-exec flag on.
    unsafe {
        command.pre_exec(move || {
            if source == target {
                check(libc::c_long::from(libc::fcntl(target, libc::F_SETFD, 0))).map(drop)
            } else {
                check(libc::c_long::from(libc::dup2(source, target))).map(drop)
            }
        });
    }
    command.spawn()
}

/// One instruction of a seccomp filter, as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub value: u32,
}

/// Puts this process and all it will start under a seccomp filter, without forbidding new privileges: `sudo` must go
/// on working. Takes the capability to administer the user namespace.
pub fn apply_seccomp(filter: &[Instruction]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: libc::c_ushort::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` points at `len` instructions of the kernel's layout, which `Instruction` has; the
    // kernel only reads them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
        .map(drop)
}

/// Takes over the descriptor that whoever started this program left at `fd`.
pub fn inherited_descriptor(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asks whether it is open.
    check(unsafe { libc::c_long::from(libc::fcntl(fd, libc::F_GETFD)) })?;
    // SAFETY: it is open, and nothing else in this program owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Number of a loop device that is free at the moment.
pub fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: takes no argument.
    let number =
        check(unsafe { libc::c_long::from(libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _)) })?;
    Ok(u32::try_from(number).expect("device numbers fit"))
}

/// Binds a loop device to a file. The kernel lets go of it with the last mount and descriptor.
pub fn configure_loop_device(device: impl AsFd, file: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct LoopInfo64 {
        device: u64,
        inode: u64,
        rdevice: u64,
        offset: u64,
        sizelimit: u64,
        number: u32,
        encrypt_type: u32,
        encrypt_key_size: u32,
        flags: u32,
        file_name: [u8; 64],
        crypt_name: [u8; 64],
        encrypt_key: [u8; 32],
        init: [u64; 2],
    }
    #[repr(C)]
    struct LoopConfig {
        fd: u32,
        block_size: u32,
        info: LoopInfo64,
        reserved: [u64; 8],
    }
    let config = LoopConfig {
        fd: u32::try_from(file.as_fd().as_raw_fd()).expect("descriptors are not negative"),
        block_size: 4096,
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: `config` has the kernel's `struct loop_config` layout and lives through the call.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    check(libc::c_long::from(result)).map(drop)
}

/// A run of a file's blocks, as the kernel's `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MappedExtent {
    pub(crate) logical: u64,
    pub(crate) physical: u64,
    pub(crate) length: u64,
    reserved: [u64; 2],
    pub(crate) flags: u32,
    reserved_too: [u32; 3],
}

/// Some of the runs of blocks that `file` has behind byte `from`; none when there are no more.
pub(crate) fn map_extents(file: impl AsFd, from: u64) -> io::Result<Vec<MappedExtent>> {
    const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;
    const AT_ONCE: u32 = 500;
    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped_extents: u32,
        extent_count: u32,
        reserved: u32,
        extents: [MappedExtent; AT_ONCE as usize],
    }
    let mut map = Fiemap {
        start: from,
        length: u64::MAX - from,
        flags: 0,
        mapped_extents: 0,
        extent_count: AT_ONCE,
        reserved: 0,
        extents: [MappedExtent::default(); AT_ONCE as usize],
    };
    // SAFETY: `map` has the kernel's `struct fiemap` layout, with room for as many extents as it says, and lives through
    // the call.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut map) };
    check(libc::c_long::from(result))?;
    let mapped = map.mapped_extents.min(AT_ONCE) as usize;
    Ok(map.extents[..mapped].to_vec())
}
