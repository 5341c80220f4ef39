//! A terminal as a person has it: a server of tmux of the test's own, with one window.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::wait::{PATIENCE, until_within};

/// What the window shows before the command's exit code. Of tmux's own `pane_dead_status` there is at times nothing:
/// 3.3a does not always hear that its child has ended.
const ENDED: &str = "ended with ";

/// One window of a terminal multiplexer; it and what runs in it end with this.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Whether this machine has the program.
    #[must_use]
    pub fn is_there() -> bool {
        Command::new("tmux").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Runs a command of the shell in a window of `rows` and `cols`.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn start(socket: PathBuf, (rows, cols): (u16, u16), command: &str) -> Self {
        let terminal = Self { socket };
        let (rows, cols) = (rows.to_string(), cols.to_string());
        let command = format!("{command}; echo \"{ENDED}$?\"");
        // One server, one window: the options are set before the command can end.
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "start-server",
            ";",
            "set",
            "-g",
            "status",
            "off",
            ";",
            "set",
            "-g",
            "remain-on-exit",
            "on",
            ";",
            "set",
            "-g",
            "default-terminal",
            "screen",
            ";",
            "new-session",
            "-d",
            "-x",
            &cols,
            "-y",
            &rows,
            &command,
        ]);
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).args(args).env_remove("TMUX").stdin(Stdio::null());
        let output = command.output().expect("tmux");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// Types a line, with Enter.
    pub fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.key("Enter");
    }

    /// Types text.
    pub fn text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Presses a key by tmux's name of it, such as `C-c`.
    pub fn key(&self, name: &str) {
        self.tmux(&["send-keys", name]);
    }

    /// Gives the window another size.
    pub fn resize(&self, (rows, cols): (u16, u16)) {
        self.tmux(&["resize-window", "-x", &cols.to_string(), "-y", &rows.to_string()]);
    }

    /// What is on the screen.
    #[must_use]
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until a line of the screen is `wanted`, and gives the screen.
    ///
    /// # Panics
    /// It is not in time.
    pub async fn shows(&self, wanted: &str) -> String {
        self.has(wanted, |screen| lines(screen).any(|line| line == wanted)).await
    }

    /// As [`Terminal::shows`], for a line that begins so.
    ///
    /// # Panics
    /// It is not in time.
    pub async fn shows_begin(&self, wanted: &str) -> String {
        self.has(wanted, |screen| lines(screen).any(|line| line.starts_with(wanted))).await
    }

    /// Waits until the screen is `wanted` and nothing else, and gives it.
    ///
    /// # Panics
    /// It is not in time.
    pub async fn shows_all(&self, wanted: &str) -> String {
        self.has(wanted, |screen| screen.trim_end() == wanted).await
    }

    async fn has(&self, wanted: &str, is_it: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE * 4;
        until_within(PATIENCE * 5, "a screen", async || {
            let screen = self.screen();
            assert!(Instant::now() < deadline, "no {wanted:?} on the screen:\n{screen}");
            is_it(&screen).then_some(screen)
        })
        .await
    }

    /// The exit code of the command, once it has ended.
    ///
    /// # Panics
    /// It does not end.
    pub async fn ended(&self) -> i32 {
        let screen = self.shows_begin(ENDED).await;
        let code = lines(&screen).find_map(|line| line.strip_prefix(ENDED));
        code.and_then(|code| code.parse().ok()).expect("an exit code")
    }
}

/// The lines of a screen without the blanks that fill them.
fn lines(screen: &str) -> impl Iterator<Item = &str> {
    screen.lines().map(str::trim_end)
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A server that has gone already is as good.
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}
