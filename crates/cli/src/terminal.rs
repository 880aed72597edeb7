//! The local terminal: its size, and raw mode that always ends.
//!
//! Raw mode is left when its guard is dropped and when the program panics. Whoever holds the guard must catch the signals
//! that would end the process without either.

use std::io::IsTerminal as _;
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
