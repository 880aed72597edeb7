//! The local terminal: its size, raw mode that always ends, and what to do after a program that drew on it was cut off.
//!
//! Raw mode is left when its guard is dropped and when the program panics. Whoever holds the guard must catch the signals
//! that would end the process without either.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// How the terminal was before raw mode; none while it is not raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowSize {
    pub(crate) cols: u16,
    pub(crate) rows: u16,
}

/// What a program may have asked of a terminal and takes back when it ends by itself: another screen (where the cursor was is remembered
/// first, since leaving a screen one is not on would move it), mice, pasting and focus that are told, keys in other words, a hidden
/// cursor, colours. What is left of it below the cursor goes.
const LEAVE_MODES: &[u8] = b"\x1b7\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1007l\x1b[?1004l\x1b[?2004l\x1b[<u\x1b[>4;0m\x1b[?1l\x1b>\x1b[?25h\x1b[0m\r\x1b[J";

/// How the terminal is before a program gets it.
pub(crate) struct Before(Termios);

/// While this lives, what is typed is not shown.
pub(crate) struct Silence(Termios);

/// While this lives, keystrokes arrive as they are typed and nothing is echoed.
pub(crate) struct RawMode(());

impl WindowSize {
    /// Of the terminal we write to, else the one we read from, else the usual 80 by 24.
    pub(crate) fn current() -> Self {
        [tcgetwinsize(std::io::stdout()), tcgetwinsize(std::io::stdin())]
            .into_iter()
            .flatten()
            .map(|size| Self { cols: size.ws_col, rows: size.ws_row })
            .find(|size| size.cols > 0 && size.rows > 0)
            .unwrap_or(Self { cols: 80, rows: 24 })
    }
}

impl Before {
    /// None where standard input is no terminal.
    pub(crate) fn of_terminal() -> Option<Self> {
        tcgetattr(std::io::stdin()).ok().map(Self)
    }

    /// At once: who should read what was printed last may be gone.
    pub(crate) fn restore(&self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// For after a program that cannot do it itself.
pub(crate) fn leave_modes() {
    let mut stdout = std::io::stdout().lock();
    if stdout.is_terminal() {
        let _ = stdout.write_all(LEAVE_MODES).and_then(|()| stdout.flush());
    }
}

impl Silence {
    /// Standard input must be a terminal.
    pub(crate) fn enter() -> std::io::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

impl RawMode {
    /// Enters raw mode when standard input is a terminal; otherwise there is nothing to do.
    pub(crate) fn enter() -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        PANIC_HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                next(info);
            }));
        });
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = Self(());
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Drain: what the sandbox printed last is shown under the rules it was printed for.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &before);
    }
}
