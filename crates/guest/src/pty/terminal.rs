//! One terminal: the kernel's pair, the shell on it, what it has shown.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use warren_guest_api::exec::{Exit, ExitReason};
use warren_guest_api::pty::{Pty, Resize};
use warren_types::error::Result;
use warren_types::{Error, ErrorKind, PtyId};

use crate::cgroup::Cgroups;
use crate::clock::now_ms;
use crate::environment::{Environment, Variables, default_shell};
use crate::intake::{Intake, Next, Senders};
use crate::log::Stream;
use crate::output::Output;
use crate::spawn::{self, Ending, Process, Program, describe};

/// How long processes that hold the terminal may still add to its output once the shell has ended.
const GRACE: Duration = Duration::from_millis(20);
const READ: usize = 8 * 1024;
const RDWR: OFlags = OFlags::RDWR.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
/// The group that may write to terminals, by Debian's numbering.
const TTY_GROUP: u32 = 5;

pub(crate) struct Terminal {
    pub(crate) id: PtyId,
    size: Cell<(u16, u16)>,
    started_at_ms: u64,
    master: AsyncFd<OwnedFd>,
    pub(crate) senders: Senders,
    /// Held while a frame is written.
    writing: Mutex<()>,
    process: Process,
    pub(crate) output: Rc<Output>,
}

impl Terminal {
    pub(super) async fn launch(
        id: PtyId,
        size: Resize,
        shell: Option<String>,
        output: Rc<Output>,
        environment: &Environment,
        cgroups: &Rc<Cgroups>,
    ) -> Result<Rc<Self>> {
        let account = environment.account();
        let (master, slave) = open_pair(&size, account.user.uid).map_err(|error| no_terminal(&error))?;
        let own = Variables::from([
            ("TERM".to_owned(), "xterm-256color".to_owned()),
            ("COLUMNS".to_owned(), size.cols.to_string()),
            ("LINES".to_owned(), size.rows.to_string()),
        ]);
        let mut variables = environment.variables(&account, &own);
        let shell = shell.filter(|shell| !shell.is_empty()).unwrap_or_else(|| default_shell().to_owned());
        variables.insert("SHELL".to_owned(), shell.clone());
        // A dash in front of its name makes a shell read the user's profile.
        let login_name = format!("-{}", shell.rsplit('/').next().unwrap_or(&shell));
        let home = variables.get("HOME").unwrap_or(&account.user.home);
        let folder = account.start_folder(home);
        let program = Program::new(&[&shell], Some(&login_name), &variables, folder)?;
        let stdio = [slave.as_fd(), slave.as_fd(), slave.as_fd()];
        let login = environment.login(&account);
        let process =
            spawn::spawn(&program, stdio, true, &format!("pty-{id}"), cgroups, login.as_ref()).await?;
        Ok(Rc::new(Self {
            id,
            size: Cell::new((size.cols, size.rows)),
            started_at_ms: now_ms(),
            master,
            senders: Senders::default(),
            writing: Mutex::new(()),
            process,
            output,
        }))
    }

    pub(crate) fn view(&self) -> Pty {
        let (cols, rows) = self.size.get();
        Pty {
            id: self.id.clone(),
            cols,
            rows,
            started_at_ms: self.started_at_ms,
            attached_clients: self.output.clients(),
        }
    }

    pub(super) fn resize(&self, size: &Resize) -> Result<()> {
        rustix::termios::tcsetwinsize(self.master.get_ref(), window(size)).map_err(|error| {
            Error::internal(format!("cannot resize the terminal: {}", describe(&error.into())))
        })?;
        self.size.set((size.cols, size.rows));
        Ok(())
    }

    pub(super) fn hang_up(&self) {
        // A group that has gone already needs no telling.
        let _ = self.process.signal(libc::SIGHUP);
    }

    pub(super) fn kill(&self) {
        self.process.kill_all();
        self.process.release();
    }

    /// Takes in what the terminal shows until the shell has ended.
    pub(super) async fn supervise(&self) {
        let exit = {
            let mut pump = std::pin::pin!(self.pump());
            let mut drained = false;
            let ending = loop {
                tokio::select! {
                    ending = self.process.wait() => break ending,
                    () = &mut pump, if !drained => drained = true,
                }
            };
            if !drained {
                let _ = tokio::time::timeout(GRACE, pump).await;
            }
            match ending {
                Ending::Exited(code) => Exit { code, reason: ExitReason::Exited },
                Ending::Signalled(signal) => Exit { code: 128 + signal, reason: ExitReason::Signalled },
                Ending::Unknown => Exit { code: -1, reason: ExitReason::Signalled },
            }
        };
        self.output.finish(exit);
    }

    async fn pump(&self) {
        let mut buffer = [0; READ];
        loop {
            self.output.until_room().await;
            // Nobody else takes output in, so what there is room for now fits later.
            let most = self.output.room().min(READ);
            let Some(count) = self.read(&mut buffer[..most]).await else { return };
            self.output.take_in(Stream::Stdout, Bytes::copy_from_slice(&buffer[..count]));
        }
    }

    /// `None` once the last process on the terminal has closed it.
    async fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            let mut ready = self.master.readable().await.ok()?;
            // Asked first: what would block takes the answer away.
            let is_closed = ready.ready().is_read_closed();
            match ready.try_io(|master| Ok(rustix::io::read(master, &mut *buffer)?)) {
                Ok(Ok(0)) => return None,
                Ok(Ok(count)) => return Some(count),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return None,
                // It would be ready for ever, and nobody else would get a turn.
                Err(_would_block) if is_closed => return None,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes what a client types until it stops or the shell has ended.
    pub(crate) async fn feed(&self, intake: &Intake, body: Incoming) {
        let feeding = intake.feed(body, async |next| match next {
            Next::Stdin => self.write(intake).await.is_ok(),
            // A terminal's input does not end; what ends a shell is a character.
            Next::StdinEnd => false,
        });
        tokio::select! {
            () = feeding => {}
            _ = self.output.until(|| self.output.exit()) => {}
        }
        intake.close();
    }

    async fn write(&self, intake: &Intake) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().await;
        while intake.has_payload() {
            let mut ready = self.master.writable().await?;
            let is_closed = ready.ready().is_write_closed();
            match ready.try_io(|master| intake.write(|bytes| Ok(rustix::io::write(master, bytes)?))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                // Full, and nobody will read it any more. It would be ready for ever, and nobody else would get a turn.
                Err(_would_block) if is_closed => {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

fn open_pair(size: &Resize, owner: u32) -> io::Result<(AsyncFd<OwnedFd>, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = match rustix::pty::openpt(flags) {
        // Who is root in the sandbox may have removed it; the one it leads to stays.
        Err(Errno::NOENT) => rustix::fs::open("/dev/pts/ptmx", RDWR, Mode::empty())?,
        master => master?,
    };
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::termios::tcsetwinsize(&master, window(size))?;
    // Programs that open their terminal by name must be allowed to. Only a helper started by hand cannot.
    let _ = rustix::fs::fchown(&slave, Some(Uid::from_raw(owner)), Some(Gid::from_raw(TTY_GROUP)));
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok((crate::sys::watch(master, Interest::READABLE | Interest::WRITABLE)?, slave))
}

fn no_terminal(error: &io::Error) -> Error {
    let text = describe(error);
    if error.kind() == io::ErrorKind::NotFound {
        let message = format!(
            "the sandbox's /dev/ptmx and /dev/pts/ptmx are missing ({text}), so it has no terminals; hibernating and waking it \
             makes /dev anew"
        );
        return Error::conflict(message);
    }
    let message = format!("the sandbox cannot open another terminal: {text}; close one");
    Error::new(ErrorKind::Unavailable, message)
}

fn window(size: &Resize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}
